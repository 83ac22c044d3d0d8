// Attention plans built on a GPU from symbols there: the lists of the host builders, exactly.
#include <cstring>

#include "gpu.h"

#include "backend/cuda/attention_lists.h"
#include "flashomni/policy.h"

namespace flashomni {
namespace {

using cuda::AttentionListBuilder;
using cuda::AttentionLists;
using cuda::AttentionStart;
using cuda::CutOptions;
using cuda::Pieces;
using test::Axis;
using test::Pattern;

class GpuPlan : public test::GpuTest {
 protected:
  static void expect_starts(const Pieces& pieces, const Pieces& expected) {
    ASSERT_EQ(pieces.starts.size(), expected.starts.size());
    for (std::size_t sm = 0; sm < pieces.starts.size(); ++sm) {
      const AttentionStart &start = pieces.starts[sm], &host = expected.starts[sm];
      ASSERT_EQ(start.first, host.first) << "multiprocessor " << sm;
      ASSERT_EQ(start.end, host.end) << "multiprocessor " << sm;
      if (start.first == start.end) continue;
      EXPECT_EQ(std::memcmp(&start.piece, &host.piece, sizeof start.piece), 0) << sm;
      // The host leaves groups that a tile cannot have as zeros, the device as they were.
      for (int i = 0; i < cuda::kMostGroups; ++i) {
        if (host.groups[i].row == 0 && host.groups[i].valid == 0) continue;
        EXPECT_EQ(start.groups[i].row, host.groups[i].row) << sm << ", group " << i;
        EXPECT_EQ(start.groups[i].valid, host.groups[i].valid) << sm << ", group " << i;
      }
    }
  }
  void expect_host_lists(const SparseSymbols& symbols, const CutOptions& options) {
    const SymbolWords words = upload(symbols);
    AttentionPlan expected, actual;
    Pieces expected_pieces, pieces;
    build_attention_plan(symbols, expected);
    cut_into_pieces(expected, options, expected_pieces);
    const int most_slots = builder_.build(words, options, lists_, nullptr);
    builder_.read_back(lists_, actual, pieces, nullptr);
    ASSERT_EQ(actual.items, expected.items);
    ASSERT_EQ(actual.kv_blocks, expected.kv_blocks);
    ASSERT_EQ(pieces.first_of_sm, expected_pieces.first_of_sm);
    EXPECT_EQ(pieces.num_slots, expected_pieces.num_slots);
    EXPECT_LE(pieces.num_slots, most_slots);
    ASSERT_EQ(pieces.list.size(), expected_pieces.list.size());
    for (std::size_t i = 0; i < pieces.list.size(); ++i) {
      ASSERT_EQ(std::memcmp(&pieces.list[i], &expected_pieces.list[i], sizeof pieces.list[i]), 0)
          << "piece " << i;
    }
    expect_starts(pieces, expected_pieces);
    num_cut_ += pieces.num_slots;
  }
  void expect_host_lists(int batch, int heads, const Axis& q, const Axis& kv) {
    for (const Pattern pattern : test::kPatterns) {
      for (const int num_sms : {132, 7, 1}) {
        SCOPED_TRACE(testing::Message()
                     << "batch " << batch << ", heads " << heads << ", tokens " << q.tokens
                     << " by " << q.block << ", keys " << kv.tokens << " by " << kv.block
                     << ", pattern " << static_cast<int>(pattern) << ", multiprocessors "
                     << num_sms);
        expect_host_lists(test::make_sparsity(batch, heads, q, kv, pattern).symbols(),
                          {.num_sms = num_sms});
      }
    }
  }

  AttentionListBuilder builder_;  // used again and again: nothing of a call before may stay
  AttentionLists lists_;
  int num_cut_ = 0;
};

TEST_F(GpuPlan, HasTheListsOfTheHost) {
  const Axis joint{900, 64, {}, 130, TextPosition::kFirst};
  expect_host_lists(1, 5, joint, joint);
  expect_host_lists(1, 33, joint, joint);
  const Axis ragged{900, 64, {900, 333}, 130, TextPosition::kLast};
  expect_host_lists(2, 3, ragged, ragged);
  expect_host_lists(2, 2, {200, 64, {0, 200}}, {200, 64, {200, 0}});
  expect_host_lists(1, 1, {1, 128}, {1, 128});
  EXPECT_GT(num_cut_, 0);
}

TEST_F(GpuPlan, HasTheListsOfTheHostForEveryKvBlock) {
  for (const int block_kv : {16, 32, 64, 128, 256, 512}) {
    expect_host_lists(1, 2, {500, 128}, {5000, block_kv});
  }
  EXPECT_GT(num_cut_, 0);
}

TEST_F(GpuPlan, CutsAsTheHostDoes) {
  for (const int block_kv : {128, 256}) {
    for (const int num_sms : {3, 20, 132, 148}) {
      for (const int smallest : {1, 3, 4}) {
        for (const int most_parts : {1, 2, 8}) {
          const Axis q{1300, 128}, kv{6000, block_kv};
          for (const Pattern pattern : {Pattern::kSkewed, Pattern::kRandom, Pattern::kAllLive}) {
            SCOPED_TRACE(testing::Message()
                         << block_kv << " " << num_sms << " " << smallest << " " << most_parts);
            expect_host_lists(
                test::make_sparsity(1, 3, q, kv, pattern).symbols(),
                {.num_sms = num_sms, .smallest_part = smallest, .most_parts = most_parts});
          }
        }
      }
    }
  }
}

// Long sequences: many rounds of dealing, and counts that differ from row to row.
TEST_F(GpuPlan, HasTheListsOfTheHostForLongSequences) {
  const Axis axis{33024, 128, {}, 512, TextPosition::kFirst};
  for (const Pattern pattern : {Pattern::kAllLive, Pattern::kRandom, Pattern::kSkewed}) {
    expect_host_lists(test::make_sparsity(1, 24, axis, axis, pattern).symbols(), {});
  }
}

TEST_F(GpuPlan, DrivesAttention) {
  const Axis axis{900, 64, {900, 333}, 130, TextPosition::kFirst};
  for (const Pattern pattern : test::kPatterns) {
    SCOPED_TRACE(static_cast<int>(pattern));
    auto c = test::random_attention({2, 3, 3, 128, axis, axis}, DType::kBF16, pattern);
    const SymbolWords words = upload(c.sparsity.symbols());
    AttentionPlan plan;
    backend->build_attention_plan_from(words, plan, {});
    EXPECT_TRUE(plan.lists_on_device);
    EXPECT_TRUE(plan.items.empty());
    const Tensor q = test::upload(*backend, c.q), k = test::upload(*backend, c.k);
    const Tensor v = test::upload(*backend, c.v), out = test::upload(*backend, c.out);
    const Tensor lse = test::upload(*backend, c.lse);
    attention(*backend, plan, q, k, v, c.scale, out, lse);
    test::download(*backend, out, c.out);
    test::download(*backend, lse, c.lse);
    test::expect_correct(c);
  }
}

// From Q and K to the output with nothing in between on the host: captured once, replayed on
// others.
TEST_F(GpuPlan, FollowsItsInputsInAGraph) {
  const Axis axis{900, 64, {}, 130, TextPosition::kFirst};
  const test::AttentionShape shape{1, 4, 4, 128, axis, axis};
  const FlashOmniOptions options{.tau_q = .6, .tau_kv = .3};
  test::GpuStream stream;
  auto c = test::random_attention(shape, DType::kBF16, Pattern::kAllLive, 1);
  const Tensor q = test::upload(*backend, c.q), k = test::upload(*backend, c.k);
  const Tensor v = test::upload(*backend, c.v), out = test::upload(*backend, c.out);
  const Tensor lse = test::upload(*backend, c.lse);
  SymbolWords words = make_symbol_words(*backend, axis.grid(1), axis.grid(1), 4);
  AttentionPlan plan;
  backend->synchronize({});
  const auto enqueue = [&] {
    backend->select_symbols(q, k, options, 1, words, {}, stream.handle());
    backend->build_attention_plan_from(words, plan, stream.handle());
    attention(*backend, plan, q, k, v, c.scale, out, lse, stream.handle());
  };
  enqueue();  // allocates
  ASSERT_EQ(stream.synchronize(), cudaSuccess);

  c = test::random_attention(shape, DType::kBF16, Pattern::kAllLive, 7);
  for (const auto& [host, device] :
       {std::pair(&c.q, &q), {&c.k, &k}, {&c.v, &v}, {&c.out, &out}, {&c.lse, &lse}}) {
    backend->copy(*host, *device, {});
  }
  backend->synchronize({});
  ASSERT_EQ(stream.capture_and_replay(enqueue, 2), cudaSuccess);
  SymbolWords fresh = make_symbol_words(*backend, axis.grid(1), axis.grid(1), 4);
  backend->select_symbols(q, k, options, 1, fresh, {}, {});
  const SparseSymbols chosen = download_symbols(*backend, words);
  EXPECT_EQ(chosen, download_symbols(*backend, fresh));
  EXPECT_LT(chosen.stats().live_q_blocks, chosen.stats().q_blocks);
  c.sparsity.cache.assign(c.sparsity.cache.size(), 0);
  chosen.to_masks(c.sparsity.cache, c.sparsity.skip);
  test::download(*backend, out, c.out);
  test::download(*backend, lse, c.lse);
  test::expect_correct(c);
}

}  // namespace
}  // namespace flashomni
