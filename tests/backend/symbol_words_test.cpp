// Symbols in a backend's memory, and the selection that writes them: what backend.h and selection.h
// promise, on every backend that runs here.
#include <gmock/gmock.h>

#include "backends.h"
#include "case.h"
#include "errors.h"
#include "flashomni/attention.h"
#include "flashomni/gemm.h"
#include "flashomni/policy.h"

namespace flashomni {
namespace {

using test::Axis;
using test::Pattern;

const Axis kAxis{150, 16, {150, 101}, 37, TextPosition::kFirst};

class SymbolWordsOf : public testing::TestWithParam<test::BackendParam> {
 protected:
  SymbolWords words(int num_heads = 3) {
    return make_symbol_words(*backend, kAxis.grid(2), kAxis.grid(2), num_heads);
  }
  SymbolWords uploaded(Pattern pattern, unsigned seed = 0) {
    SymbolWords to = words();
    upload_symbols(*backend, symbols(pattern, seed), to);
    return to;
  }
  static SparseSymbols symbols(Pattern pattern, unsigned seed = 0) {
    return test::make_sparsity(2, 3, kAxis, kAxis, pattern, seed).symbols();
  }
  std::unique_ptr<Backend> backend = GetParam().make();
};

TEST_P(SymbolWordsOf, ComeBackAsTheyWent) {
  for (const Pattern pattern : test::kPatterns) {
    EXPECT_EQ(download_symbols(*backend, uploaded(pattern)), symbols(pattern));
  }
}

TEST_P(SymbolWordsOf, RefuseSymbolsOfAnotherShape) {
  SymbolWords four = words(4);
  EXPECT_EQ(test::error_of([&] { upload_symbols(*backend, symbols(Pattern::kRandom), four); }),
            "upload_symbols: symbols have another grid or number of heads than the words, expected "
            "the same");
}

TEST_P(SymbolWordsOf, GiveThePlansOfTheirSymbols) {
  const SymbolWords now = uploaded(Pattern::kRandom), before = uploaded(Pattern::kRandom, 1);
  const SparseSymbols symbols_before = symbols(Pattern::kRandom, 1);
  AttentionPlan plan, expected;
  backend->build_attention_plan_from(now, plan, {});
  build_attention_plan(symbols(Pattern::kRandom), expected);
  EXPECT_FALSE(plan.lists_on_device);
  EXPECT_EQ(plan.items, expected.items);
  EXPECT_EQ(plan.kv_blocks, expected.kv_blocks);
  EXPECT_EQ(plan.stats.live_pairs, expected.stats.live_pairs);
  for (const bool has_previous : {false, true}) {
    GemmPlan gemm, expected_gemm;
    backend->build_gemm_plan_from(now, 37, 113, has_previous ? &before : nullptr, gemm, {});
    build_gemm_plan(symbols(Pattern::kRandom), 37, 113, has_previous ? &symbols_before : nullptr,
                    expected_gemm);
    EXPECT_EQ(gemm.row_blocks, expected_gemm.row_blocks);
    EXPECT_EQ(gemm.head_lists, expected_gemm.head_lists);
  }
}

TEST_P(SymbolWordsOf, AreSelectedAsThePolicyDoes) {
  const Tensor q = test::random_tensor(DType::kF32, {2, 150, 4, 24}, 1);
  const Tensor k = test::random_tensor(DType::kF32, {2, 150, 2, 24}, 2);
  const Tensor dq = test::upload(*backend, q), dk = test::upload(*backend, k);
  SymbolWords to = words(4);
  const Layout rows{2, 4, to.q_grid.num_blocks()};
  const Tensor c = test::upload(*backend, test::canary_tensor(DType::kF32, rows));
  const Tensor g = test::upload(*backend, test::canary_tensor(DType::kF32, rows));
  const FlashOmniOptions options{.tau_q = .9,
                                 .tau_kv = .6,
                                 .sim_threshold = .06,
                                 .subtract_k_mean = true,
                                 .log_count_bias = true};
  backend->select_symbols(dq, dk, options, .5, to, {c, g}, {});

  BlockScores scores;
  backend->block_scores(dq, dk, to.q_grid, to.kv_grid, {0, true, true, true}, scores, {});
  SparseSymbols expected(to.q_grid, to.kv_grid, 4);
  const SelectionScores selection = select_flashomni(options, .5, scores, expected);
  EXPECT_EQ(download_symbols(*backend, to), expected);
  EXPECT_LT(expected.stats().live_block_pairs, expected.stats().block_pairs);
  EXPECT_LT(expected.stats().live_q_blocks, expected.stats().q_blocks);
  for (const auto& [actual, wanted] : {std::pair(&c, &selection.c), {&g, &selection.g}}) {
    Tensor host = Tensor::host(DType::kF32, rows);
    test::download(*backend, *actual, host);
    EXPECT_THAT(*wanted, testing::ElementsAreArray(host.as<float>(), wanted->size()));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SymbolWordsOf,
                         testing::ValuesIn(test::backends_for(DType::kF32)), test::param_name);

// What the host cannot know is not computed wrongly.
TEST(AttentionPlanOnADevice, IsRefusedByHostBackends) {
  const auto backend = make_backend("reference");
  AttentionPlan plan;
  build_attention_plan(SparseSymbols(kAxis.grid(2), kAxis.grid(2), 3), plan);
  plan.lists_on_device = true;
  const Tensor x = test::random_tensor(DType::kF32, {2, 150, 3, 24}, 1);
  const Tensor out = Tensor::host(DType::kF32, {2, 150, 3, 24});
  EXPECT_EQ(test::error_of([&] { attention(*backend, plan, x, x, x, 1, out); }),
            "attention: plan has its lists on a device, expected one built by a host backend");
}

TEST(GemmPlanOnADevice, IsRefusedByHostBackends) {
  const auto backend = make_backend("reference");
  GemmPlan plan;
  build_gemm_plan(SparseSymbols(kAxis.grid(2), kAxis.grid(2), 3), 0, 150, nullptr, plan);
  plan.lists_on_device = true;
  const PackedWeight weight =
      backend->pack_weight(test::random_tensor(DType::kF32, {24, 24}, 1), DType::kF32, 8);
  const Tensor x = test::random_tensor(DType::kF32, {2, 150, 24}, 2);
  const Tensor out = Tensor::host(DType::kF32, {2, 150, 24});
  const OutputProjection projection{&weight, {}, x, {}, out};
  const float one[] = {1};
  const std::string refusal =
      ": plan has its lists on a device, expected one built by a host backend";
  EXPECT_EQ(test::error_of([&] { gemm_q(*backend, plan, x, weight, {}, {}, out); }),
            "gemm_q" + refusal);
  EXPECT_EQ(test::error_of([&] { gemm_o_update(*backend, plan, projection, 1, {}); }),
            "gemm_o_update" + refusal);
  EXPECT_EQ(test::error_of([&] { gemm_o_dispatch(*backend, plan, projection, one, {}); }),
            "gemm_o_dispatch" + refusal);
  EXPECT_EQ(test::error_of([&] { plan.live_heads(0); }),
            "live_heads: plan has its lists on a device, expected one with them on the host");
  EXPECT_EQ(test::error_of([&] { plan.cached_heads(0); }),
            "cached_heads: plan has its lists on a device, expected one with them on the host");
  build_gemm_plan(SparseSymbols(kAxis.grid(2), kAxis.grid(2), 3), 0, 150, nullptr, plan);
  EXPECT_FALSE(plan.lists_on_device);
}

}  // namespace
}  // namespace flashomni
