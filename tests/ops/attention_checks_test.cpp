#include <functional>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "flashomni/attention.h"

#include "errors.h"

namespace flashomni {
namespace {

BlockGrid grid_of(int tokens) {
  return BlockGrid(4, 2, make_segments(tokens, 0, TextPosition::kNone));
}

// A call that is right in every respect: 2 items, 6 queries, 9 keys, 4 heads over 2, head_dim 8.
struct Call {
  std::unique_ptr<Backend> backend = make_backend("reference");
  AttentionPlan plan;
  Tensor q_data = Tensor::host_zeros(DType::kF32, {2, 6, 4, 8});
  Tensor k_data = Tensor::host_zeros(DType::kF32, {2, 9, 2, 8});
  Tensor v_data = Tensor::host_zeros(DType::kF32, {2, 9, 2, 8});
  Tensor out_data = Tensor::host_zeros(DType::kF32, {2, 6, 4, 8});
  Tensor lse_data = Tensor::host_zeros(DType::kF32, {2, 4, 6});
  ConstTensorView q = q_data, k = k_data, v = v_data;
  float scale = 1;
  TensorView out = out_data, lse = lse_data;
  Tensor term_data = Tensor::host_zeros(DType::kF32, {2, 6, 4, 8});
  std::vector<ConstTensorView> terms;
  std::vector<float> coefficients;

  Call() { build_attention_plan(SparseSymbols(grid_of(6), grid_of(9), 4), plan); }
  void run() { attention(*backend, plan, q, k, v, scale, out, lse, {}, {terms, coefficients}); }
};

std::string error_after(const std::function<void(Call&)>& change) {
  Call call;
  change(call);
  return test::error_of([&] { call.run(); });
}

TEST(AttentionChecks, AcceptWhatTheContractAllows) {
  EXPECT_NO_THROW(Call().run());
  Call without_lse;
  without_lse.lse = {};
  EXPECT_NO_THROW(without_lse.run());
}

TEST(AttentionChecks, Presence) {
  EXPECT_EQ(error_after([](Call& c) { c.plan = {}; }),
            "attention: plan is empty, expected one from build_attention_plan");
  EXPECT_EQ(error_after([](Call& c) { c.q = {}; }), "attention: q is missing");
  EXPECT_EQ(error_after([](Call& c) { c.k = {}; }), "attention: k is missing");
  EXPECT_EQ(error_after([](Call& c) { c.v = {}; }), "attention: v is missing");
  EXPECT_EQ(error_after([](Call& c) { c.out = {}; }), "attention: out is missing");
}

TEST(AttentionChecks, Rank) {
  EXPECT_EQ(error_after([](Call& c) {
              c.q = c.q.reshape({12, 4, 8});
            }),
            "attention: q has rank 3, expected 4");
  EXPECT_EQ(error_after([](Call& c) {
              c.v = c.v.reshape({18, 16});
            }),
            "attention: v has rank 2, expected 4");
  EXPECT_EQ(error_after([](Call& c) {
              c.lse = c.lse.reshape({8, 6});
            }),
            "attention: lse has rank 2, expected 3");
}

TEST(AttentionChecks, DType) {
  EXPECT_EQ(error_after([](Call& c) { c.q.dtype = DType::kI32; }),
            "attention: q is i32, expected f32, bf16 or f16");
  EXPECT_EQ(error_after([](Call& c) { c.k.dtype = DType::kBF16; }),
            "attention: k is bf16, expected f32");
  EXPECT_EQ(error_after([](Call& c) { c.out.dtype = DType::kF16; }),
            "attention: out is f16, expected f32");
  EXPECT_EQ(error_after([](Call& c) { c.lse.dtype = DType::kBF16; }),
            "attention: lse is bf16, expected f32");
}

TEST(AttentionChecks, TheDevice) {
  EXPECT_EQ(error_after([](Call& c) {
              c.v.device = {DeviceType::kCuda, 1};
            }),
            "attention: v is on cuda:1, expected cpu");
}

TEST(AttentionChecks, Shape) {
  EXPECT_EQ(error_after([](Call& c) { c.q = c.q.slice(1, 0, 5); }),
            "attention: q is [2, 5, 4, 8], expected [2, 6, 4, 8]");
  EXPECT_EQ(error_after([](Call& c) { c.k = c.k.slice(3, 0, 4); }),
            "attention: k is [2, 9, 2, 4], expected [2, 9, 2, 8]");
  EXPECT_EQ(error_after([](Call& c) { c.v = c.v.slice(0, 0, 1); }),
            "attention: v is [1, 9, 2, 8], expected [2, 9, 2, 8]");
  EXPECT_EQ(error_after([](Call& c) { c.out = c.out.slice(2, 0, 3); }),
            "attention: out is [2, 6, 3, 8], expected [2, 6, 4, 8]");
  EXPECT_EQ(error_after([](Call& c) { c.lse = c.lse.slice(2, 1, 6); }),
            "attention: lse is [2, 4, 5], expected [2, 4, 6]");
  EXPECT_EQ(error_after([](Call& c) {
              c.k = c.v = c.k_data.view().reshape({2, 6, 3, 8});
            }),
            "attention: k has 3 heads, expected a divisor of the plan's 4");
}

TEST(AttentionChecks, Scale) {
  EXPECT_EQ(error_after([](Call& c) { c.scale = std::numeric_limits<float>::infinity(); }),
            "attention: scale is inf, expected a finite number");
}

TEST(AttentionChecks, Reuse) {
  const auto with_terms = [](Call& c, std::size_t count) {
    c.terms.assign(count, c.term_data);
    c.coefficients.assign(count, 1.0f);
  };
  Call call;
  with_terms(call, 3);
  EXPECT_NO_THROW(call.run());
  EXPECT_EQ(error_after([&](Call& c) { with_terms(c, 4); }),
            "attention: reuse has 4 terms, allowed are up to 3");
  EXPECT_EQ(error_after([&](Call& c) {
              with_terms(c, 2);
              c.coefficients.pop_back();
            }),
            "attention: reuse has 1 coefficients, expected one for each of its 2 terms");
  EXPECT_EQ(error_after([&](Call& c) {
              with_terms(c, 2);
              c.coefficients[1] = std::numeric_limits<float>::infinity();
            }),
            "attention: reuse.coefficients[1] is inf, expected a finite number");
  EXPECT_EQ(error_after([&](Call& c) {
              with_terms(c, 2);
              c.terms[1] = c.terms[1].slice(1, 0, 5);
            }),
            "attention: reuse.terms[1] is [2, 5, 4, 8], expected [2, 6, 4, 8]");
  EXPECT_EQ(error_after([&](Call& c) {
              with_terms(c, 2);
              c.terms[1].dtype = DType::kBF16;
            }),
            "attention: reuse.terms[1] is bf16, expected f32");
  EXPECT_EQ(error_after([&](Call& c) {
              with_terms(c, 1);
              c.terms[0] = c.out;
            }),
            "attention: out overlaps reuse.terms[0]");
}

TEST(AttentionChecks, Strides) {
  EXPECT_EQ(error_after([](Call& c) { c.k.layout.strides[3] = 2; }),
            "attention: k has stride 2 in its last axis, expected 1");
  EXPECT_EQ(error_after([](Call& c) { c.out.layout.strides[0] = 0; }),
            "attention: out has stride 0 in axis 0, expected at least 1");
}

TEST(AttentionChecks, Overlap) {
  EXPECT_EQ(error_after([](Call& c) { c.q = c.out; }), "attention: out overlaps q");
  EXPECT_EQ(error_after([](Call& c) {
              c.lse = c.out_data.view().slice(0, 1, 2).reshape({4, 6, 8}).slice(2, 7, 8);
              c.lse.layout = Layout({2, 4, 6});
            }),
            "attention: lse overlaps out");
}

TEST(AttentionChecks, ColumnSlicesOfOneBufferDoNotOverlap) {
  const Tensor fused = Tensor::host_zeros(DType::kF32, {2, 6, 12, 8});
  Call call;
  call.q = fused.view().slice(2, 0, 4);
  call.out = fused.view().slice(2, 8, 12);
  EXPECT_NO_THROW(call.run());
  call.out = fused.view().slice(2, 3, 7);
  EXPECT_EQ(test::error_of([&] { call.run(); }), "attention: out overlaps q");
}

}  // namespace
}  // namespace flashomni
