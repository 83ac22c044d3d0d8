// What attention plans built on a GPU leave out, and the forecasts that go there.
#include <cstring>

#include "gpu.h"
#include "reuse_case.h"

#include "backend/cuda/attention_lists.h"
#include "plan/cached_blocks.h"

namespace flashomni {
namespace {

using test::Axis;
using test::Pattern;

class GpuCachedRows : public test::GpuTest {
 protected:
  // The list ends after the blocks of the host's, and is padded to the size of the grid.
  void expect_host_list(const SparseSymbols& symbols) {
    AttentionPlan plan;
    build_attention_plan(symbols, plan);
    const std::vector<CachedBlock> expected = cached_blocks(plan);
    const SymbolWords words = upload(symbols);
    builder_.build(words, {.num_sms = 132}, lists_, nullptr);
    std::vector<cuda::CachedRows> rows(static_cast<std::size_t>(symbols.q_grid().batch()) *
                                       symbols.num_heads() * symbols.q_grid().num_blocks());
    ASSERT_EQ(cudaMemcpy(rows.data(), lists_.cached.as<void>(), rows.size() * sizeof(rows[0]),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    ASSERT_LE(expected.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const CachedBlock block{rows[i].batch, rows[i].head, {rows[i].row, rows[i].num_rows}};
      ASSERT_EQ(block, i < expected.size() ? expected[i] : CachedBlock{})
          << i << " of " << expected.size();
    }
  }

  cuda::AttentionListBuilder builder_;
  cuda::AttentionLists lists_;
};

// One builder and its memory throughout: what a list had before must not stay.
TEST_F(GpuCachedRows, AreThoseOfTheHostPlan) {
  const Axis axes[] = {
      {300, 128, {300, 170}}, {300, 128, {0, 300}}, {1000, 50}, {1, 16}, {2500, 2, {2500, 999}}};
  for (const Axis& q : axes) {
    const int batch = q.lengths.empty() ? 1 : 2;
    for (const int heads : {1, 3, 40}) {
      for (const Pattern pattern : test::kPatterns) {
        SCOPED_TRACE(testing::Message() << q.tokens << " by " << q.block << ", heads " << heads
                                        << ", pattern " << static_cast<int>(pattern));
        expect_host_list(test::make_sparsity(batch, heads, q, {300, 128}, pattern).symbols());
      }
    }
  }
}

// A plan of the device and one of the host give the same bits. The plan is built again and again.
TEST_F(GpuCachedRows, HoldTheForecastByPlansOfTheDevice) {
  const Axis axis{1000, 50, {1000, 555}};
  AttentionPlan plan;
  for (const Pattern pattern : test::kPatterns) {
    SCOPED_TRACE(testing::Message() << "pattern " << static_cast<int>(pattern));
    auto by_host = test::random_reuse({2, 5, 5, 128, axis, {1000, 128}}, DType::kBF16, pattern, 2,
                                      DType::kF32);
    test::run(*backend, by_host);
    auto c = test::random_reuse({2, 5, 5, 128, axis, {1000, 128}}, DType::kBF16, pattern, 2,
                                DType::kF32);
    const SymbolWords words = upload(c.attention.sparsity.symbols());
    backend->build_attention_plan_from(words, plan, {});
    ASSERT_TRUE(plan.lists_on_device);
    test::run(*backend, plan, c);
    test::expect_correct(c);
    const Tensor &out = c.attention.out, &expected = by_host.attention.out;
    EXPECT_EQ(std::memcmp(out.as<void>(), expected.as<void>(),
                          static_cast<std::size_t>(out.num_elements()) * 2),
              0);
  }
}

}  // namespace
}  // namespace flashomni
