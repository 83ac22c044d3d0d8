#include "backend/metered.h"

#include <array>

#include <gtest/gtest.h>

#include "idle_backend.h"

namespace flashomni {
namespace {

// 2 heads of 8 over 20 tokens in blocks of 4; head 1 caches block 0 and skips kv block 3 in
// block 1.
class MeteredBackendTest : public testing::Test {
 protected:
  MeteredBackendTest() {
    symbols_.cache(0, 1, 0);
    symbols_.skip(0, 1, 1, 3);
    build_attention_plan(symbols_, attention_);
    build_gemm_plan(symbols_, 0, 20, nullptr, gemm_);
  }

  // Of the one kind that was called since the last time.
  OpCost cost(OpKind kind) {
    const OpCost cost = metered_.cost(kind);
    EXPECT_EQ(metered_.macs(), cost.macs) << "another kind was charged";
    metered_.reset();
    EXPECT_EQ(metered_.cost(kind).calls, 0);
    return cost;
  }

  test::IdleBackend* inner_ = new test::IdleBackend;
  MeteredBackend metered_{std::unique_ptr<Backend>(inner_)};
  BlockGrid grid_{4, 1, make_segments(20, 0, TextPosition::kNone)};
  SparseSymbols symbols_{grid_, grid_, 2};
  AttentionPlan attention_;
  GemmPlan gemm_;
  Tensor heads_ = Tensor::host_zeros(DType::kF32, {1, 20, 2, 8});
  Tensor rows_ = Tensor::host_zeros(DType::kF32, {1, 20, 16});
  Tensor mlp_ = Tensor::host_zeros(DType::kF32, {1, 20, 5});
  PackedWeight weight_{{}, 16, 24, DType::kF32, 8};
};

TEST_F(MeteredBackendTest, CountsTheLivePairsOfAttention) {
  metered_.attention(attention_, heads_, heads_, heads_, 1, heads_, {}, {}, {});
  EXPECT_EQ(inner_->calls.attention, 1);
  const OpCost attention = cost(OpKind::kAttention);
  EXPECT_EQ(attention.calls, 1);
  EXPECT_EQ(attention.macs, (2 * 20 * 20 - 4 * 20 - 4 * 4) * 8 * 2);
}

TEST_F(MeteredBackendTest, CountsTheLiveRowsOfProjections) {
  metered_.gemm_q(gemm_, rows_, weight_, {}, {}, rows_, {});
  EXPECT_EQ(inner_->calls.gemm_q, 1);
  EXPECT_EQ(cost(OpKind::kGemmQ).macs, (20 + 16) * 8 * 24);

  const InputProjection input{&gemm_, &weight_, {}, {}, rows_};
  metered_.gemm_qkv(rows_, std::array{input, input, input}, {});
  EXPECT_EQ(inner_->calls.gemm_q, 4);
  EXPECT_EQ(cost(OpKind::kGemmQ).macs, 3 * (20 + 16) * 8 * 24);

  OutputProjection projection;
  projection.weight = &weight_;
  projection.o = rows_;
  metered_.gemm_o_update(gemm_, projection, 1, {}, {});
  EXPECT_EQ(inner_->calls.update, 1);
  EXPECT_EQ(cost(OpKind::kGemmO).macs, 2 * 20 * 8 * 16);
  metered_.gemm_o_dispatch(gemm_, projection, {}, {}, {});
  EXPECT_EQ(inner_->calls.dispatch, 1);
  EXPECT_EQ(cost(OpKind::kGemmO).macs, (20 + 16) * 8 * 16);
  projection.mlp = mlp_;
  metered_.gemm_o_dispatch(gemm_, projection, {}, {}, {});
  EXPECT_EQ(cost(OpKind::kGemmO).macs, (20 + 16) * 8 * 16 + 20 * 5 * 16);
}

TEST_F(MeteredBackendTest, CountsDenseLayersAndTheRest) {
  const TensorView matrix = rows_.view().reshape({20, 16});
  metered_.linear(matrix, weight_, {}, Activation::kNone, matrix, {});
  EXPECT_EQ(cost(OpKind::kLinear).macs, 20 * 16 * 24);
  metered_.norm_modulate(matrix, {}, {}, 1, matrix, {});
  metered_.gated_add(matrix, {}, matrix, {});
  EXPECT_EQ(cost(OpKind::kNorm).calls, 2);
  BlockScores scores;
  metered_.block_scores(heads_, heads_, grid_, grid_, {}, scores, {});
  metered_.build_gemm_plan(symbols_, 0, 20, nullptr, gemm_, {});
  metered_.build_attention_plan(symbols_, attention_, {});
  EXPECT_EQ(inner_->calls.scores, 1);
  SymbolWords words = make_symbol_words(metered_, grid_, grid_, 2);
  metered_.select_symbols(heads_, heads_, {}, 1, words, {}, {});
  EXPECT_EQ(inner_->calls.select, 1);
  metered_.build_gemm_plan_from(words, 0, 20, nullptr, gemm_, {});
  metered_.build_attention_plan_from(words, attention_, {});
  EXPECT_EQ(inner_->calls.plans_from_words, 2);
  const OpCost policy = cost(OpKind::kPolicy);
  EXPECT_EQ(policy.calls, 6);
  EXPECT_EQ(policy.macs, 2 * 5 * 5 * 2 * 8);
  metered_.forecast({}, {}, matrix, {});
  metered_.push_differences(matrix, 0, 1, {}, {});
  metered_.copy(matrix, matrix, {});
  EXPECT_EQ(inner_->calls.forecast + inner_->calls.push, 2);
  EXPECT_EQ(cost(OpKind::kOther).calls, 3);
}

TEST_F(MeteredBackendTest, AddsUpTime) {
  for (int call = 0; call < 100; ++call)
    metered_.build_gemm_plan(symbols_, 0, 20, nullptr, gemm_, {});
  const double first = metered_.cost(OpKind::kPolicy).seconds;
  EXPECT_GT(first, 0);
  for (int call = 0; call < 100; ++call)
    metered_.build_gemm_plan(symbols_, 0, 20, nullptr, gemm_, {});
  EXPECT_GT(metered_.cost(OpKind::kPolicy).seconds, first);
  EXPECT_EQ(metered_.name(), "idle");
  EXPECT_EQ(op_kind_name(OpKind::kAttention), "attention");
  EXPECT_EQ(op_kind_name(OpKind::kOther), "other");
}

// Marks are a second apart, on a clock that only counts marks.
struct CountingTimer : DeviceTimer {
  int marks = 0, resets = 0;
  int mark(Stream) override { return marks++; }
  double seconds(int from, int to) override { return to - from; }
  void reset() override {
    marks = 0;
    ++resets;
  }
};

TEST(MeteredDevice, TakesTheTimeOfQueuedWorkFromTheDevice) {
  CountingTimer timer;
  auto idle = std::make_unique<test::IdleBackend>();
  idle->timer = &timer;
  MeteredBackend metered(std::move(idle));
  EXPECT_EQ(metered.device_timer(), &timer);
  const Tensor rows = Tensor::host_zeros(DType::kF32, {4, 8});
  metered.gated_add(rows, {}, rows, {});
  metered.copy(rows, rows, {});
  metered.gated_add(rows, {}, rows, {});
  EXPECT_EQ(metered.cost(OpKind::kNorm).seconds, 2);
  EXPECT_EQ(metered.cost(OpKind::kNorm).calls, 2);
  EXPECT_EQ(metered.cost(OpKind::kOther).seconds, 1);
  EXPECT_EQ(metered.cost(OpKind::kLinear).seconds, 0);
  metered.reset();
  EXPECT_EQ(timer.resets, 1);
  EXPECT_EQ(metered.cost(OpKind::kNorm).seconds, 0);
}

}  // namespace
}  // namespace flashomni
