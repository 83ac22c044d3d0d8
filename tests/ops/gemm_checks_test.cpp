#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "flashomni/gemm.h"

#include "errors.h"

namespace flashomni {
namespace {

constexpr int kHeads = 3, kHeadDim = 4, kIn = 5, kOut = 6, kMlp = 7, kRows = 9;

GemmPlan make_plan() {
  const BlockGrid grid(4, 2, make_segments(kRows, 0, TextPosition::kNone));
  GemmPlan plan;
  build_gemm_plan(SparseSymbols(grid, grid, kHeads), 0, kRows, nullptr, plan);
  return plan;
}

Tensor zeros(Layout layout, DType dtype = DType::kF32) { return Tensor::host_zeros(dtype, layout); }

struct QueryCall {
  std::unique_ptr<Backend> backend = make_backend("reference");
  GemmPlan plan = make_plan();
  Tensor x_data = zeros({2, kRows, kIn}), out_data = zeros({2, kRows, kHeads*kHeadDim});
  Tensor bias_data = zeros({kHeads * kHeadDim}), norm_data = zeros({kHeadDim});
  Tensor cos_data = zeros({kRows, kHeadDim / 2}), sin_data = zeros({kRows, kHeadDim / 2});
  PackedWeight weight =
      backend->pack_weight(zeros({kHeads * kHeadDim, kIn}), DType::kF32, kHeadDim);
  ConstTensorView x = x_data, bias = bias_data;
  NormRope epilogue{norm_data, 1e-6f, cos_data, sin_data};
  TensorView out = out_data;

  void run() { gemm_q(*backend, plan, x, weight, bias, epilogue, out); }
};

std::string query_error(const std::function<void(QueryCall&)>& change) {
  QueryCall call;
  change(call);
  return test::error_of([&] { call.run(); });
}

TEST(GemmQChecks, AcceptWhatTheContractAllows) {
  EXPECT_NO_THROW(QueryCall().run());
  QueryCall bare;
  bare.bias = {};
  bare.epilogue = {};
  EXPECT_NO_THROW(bare.run());
}

TEST(GemmQChecks, TheWeight) {
  EXPECT_EQ(query_error([](QueryCall& c) { c.plan = {}; }),
            "gemm_q: plan is empty, expected one from build_gemm_plan");
  EXPECT_EQ(query_error([](QueryCall& c) { c.weight = {}; }),
            "gemm_q: weight is missing, expected one made by Backend::pack_weight");
  EXPECT_EQ(query_error([](QueryCall& c) { c.weight.out_features = 11; }),
            "gemm_q: weight has 11 out_features, expected a multiple of the plan's 3 heads");
  EXPECT_EQ(query_error([](QueryCall& c) { c.weight.column_group = 0; }),
            "gemm_q: weight is packed with column_group 0, expected the head_dim 4");
}

TEST(GemmQChecks, Tensors) {
  EXPECT_EQ(query_error([](QueryCall& c) { c.x = {}; }), "gemm_q: x is missing");
  EXPECT_EQ(query_error([](QueryCall& c) {
              c.x = c.x.reshape({18, kIn});
            }),
            "gemm_q: x has rank 2, expected 3");
  EXPECT_EQ(query_error([](QueryCall& c) { c.x.dtype = DType::kBF16; }),
            "gemm_q: x is bf16, expected f32");
  EXPECT_EQ(query_error([](QueryCall& c) { c.x = c.x.slice(2, 0, 4); }),
            "gemm_q: x is [2, 9, 4], expected [2, 9, 5]");
  EXPECT_EQ(query_error([](QueryCall& c) { c.x.layout.strides[2] = 2; }),
            "gemm_q: x has stride 2 in its last axis, expected 1");
  EXPECT_EQ(query_error([](QueryCall& c) { c.bias = c.bias.slice(0, 0, 4); }),
            "gemm_q: bias is [4], expected [12]");
  EXPECT_EQ(query_error([](QueryCall& c) { c.bias.dtype = DType::kBF16; }),
            "gemm_q: bias is bf16, expected f32");
  EXPECT_EQ(query_error([](QueryCall& c) { c.out = c.out.slice(1, 0, 8); }),
            "gemm_q: out is [2, 8, 12], expected [2, 9, 12]");
  EXPECT_EQ(query_error([](QueryCall& c) {
              c.out.device = {DeviceType::kCuda, 0};
            }),
            "gemm_q: out is on cuda:0, expected cpu");
  EXPECT_EQ(query_error([](QueryCall& c) { c.x = c.out.slice(2, 0, kIn); }),
            "gemm_q: out overlaps x");
}

TEST(GemmQChecks, TheEpilogue) {
  EXPECT_EQ(query_error([](QueryCall& c) { c.epilogue.sin = {}; }),
            "gemm_q: cos is given without sin");
  EXPECT_EQ(query_error([](QueryCall& c) { c.epilogue.cos = {}; }),
            "gemm_q: sin is given without cos");
  EXPECT_EQ(query_error([](QueryCall& c) { c.epilogue.norm_weight = c.bias_data; }),
            "gemm_q: norm_weight is [12], expected [4]");
  EXPECT_EQ(query_error([](QueryCall& c) { c.epilogue.cos = c.epilogue.cos.slice(0, 0, 8); }),
            "gemm_q: cos is [8, 2], expected [9, 2]");
  EXPECT_EQ(query_error([](QueryCall& c) { c.epilogue.sin = c.epilogue.sin.slice(1, 0, 1); }),
            "gemm_q: sin is [9, 1], expected [9, 2]");
  EXPECT_EQ(query_error([](QueryCall& c) {
              c.weight = c.backend->pack_weight(zeros({9, kIn}), DType::kF32, 3);
              c.bias = {};
              c.epilogue.norm_weight = {};
            }),
            "gemm_q: head_dim is 3, the rotary embedding needs an even one");
}

struct OutputCall {
  std::unique_ptr<Backend> backend = make_backend("reference");
  GemmPlan plan = make_plan();
  Tensor o = zeros({2, kRows, kHeads*kHeadDim}), mlp = zeros({2, kRows, kMlp});
  Tensor bias = zeros({kOut}), out = zeros({2, kRows, kOut});
  Tensor terms[3] = {zeros({2, kRows, kOut}), zeros({2, kRows, kOut}), zeros({2, kRows, kOut})};
  Tensor valid_order = zeros({2, 3}, DType::kU8);
  PackedWeight weight =
      backend->pack_weight(zeros({kOut, kHeads* kHeadDim + kMlp}), DType::kF32, 0);
  OutputProjection projection{&weight, bias, o, mlp, out};
  BiasCacheView cache{2, {terms[0], terms[1], terms[2]}, valid_order};
  float steps = 1;
  std::vector<float> coefficients = {1, 1, 0.5f};

  void update() { gemm_o_update(*backend, plan, projection, steps, cache); }
  void dispatch() { gemm_o_dispatch(*backend, plan, projection, coefficients, cache); }
};

std::string update_error(const std::function<void(OutputCall&)>& change) {
  OutputCall call;
  change(call);
  return test::error_of([&] { call.update(); });
}

std::string dispatch_error(const std::function<void(OutputCall&)>& change) {
  OutputCall call;
  call.projection.bias = {};
  change(call);
  return test::error_of([&] { call.dispatch(); });
}

TEST(GemmOChecks, AcceptWhatTheContractAllows) {
  OutputCall call;
  EXPECT_NO_THROW(call.update());
  call.projection.bias = {};
  EXPECT_NO_THROW(call.dispatch());
  call.coefficients = {1};
  EXPECT_NO_THROW(call.dispatch());
  call.cache = {};
  EXPECT_NO_THROW(call.update());
}

TEST(GemmOChecks, TheWeight) {
  EXPECT_EQ(update_error([](OutputCall& c) { c.plan = {}; }),
            "gemm_o_update: plan is empty, expected one from build_gemm_plan");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.weight = nullptr; }),
            "gemm_o_update: weight is missing");
  EXPECT_EQ(update_error([](OutputCall& c) { c.weight = {}; }),
            "gemm_o_update: weight is missing, expected one made by Backend::pack_weight");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.mlp = {}; }),
            "gemm_o_update: weight has 19 in_features, 0 of them for mlp; the rest is no multiple "
            "of the plan's 3 heads");
}

TEST(GemmOChecks, Tensors) {
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.o = {}; }),
            "gemm_o_update: o is missing");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.mlp = c.mlp.view().slice(0, 0, 1); }),
            "gemm_o_update: mlp is [1, 9, 7], expected [2, 9, 7]");
  EXPECT_EQ(update_error([](OutputCall& c) {
              c.projection.mlp = c.mlp.view().reshape({18, 7});
            }),
            "gemm_o_update: mlp has rank 2, expected 3");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.o = c.o.view().slice(1, 0, 8); }),
            "gemm_o_update: o is [2, 8, 12], expected [2, 9, 12]");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.o.dtype = DType::kF16; }),
            "gemm_o_update: o is f16, expected f32");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.bias = c.bias.view().slice(0, 0, 5); }),
            "gemm_o_update: bias is [5], expected [6]");
  EXPECT_EQ(update_error([](OutputCall& c) {
              c.projection.out.device = {DeviceType::kCuda, 0};
            }),
            "gemm_o_update: out is on cuda:0, expected cpu");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.out.layout.strides[2] = 3; }),
            "gemm_o_update: out has stride 3 in its last axis, expected 1");
  EXPECT_EQ(update_error([](OutputCall& c) {
              c.projection.out = TensorView(c.o.view().data, DType::kF32, {2, kRows, kOut});
            }),
            "gemm_o_update: out overlaps o");
}

TEST(GemmOChecks, TheResidual) {
  const auto add = [](OutputCall& c) {
    c.projection.residual = c.projection.out;
    c.projection.out = {};
  };
  OutputCall call;
  add(call);
  EXPECT_NO_THROW(call.update());
  call.projection.gate = call.bias;
  EXPECT_NO_THROW(call.update());
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.residual = c.projection.out; }),
            "gemm_o_update: out and residual are both given, expected one of them");
  EXPECT_EQ(update_error([](OutputCall& c) { c.projection.out = {}; }),
            "gemm_o_update: out is missing");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.projection.gate = c.bias; }),
            "gemm_o_dispatch: gate is given without residual");
  EXPECT_EQ(update_error([&](OutputCall& c) {
              add(c);
              c.projection.gate = c.bias.view().slice(0, 0, 5);
            }),
            "gemm_o_update: gate is [5], expected [6]");
  EXPECT_EQ(update_error([&](OutputCall& c) {
              add(c);
              c.projection.residual.dtype = DType::kBF16;
            }),
            "gemm_o_update: residual is bf16, expected f32");
  EXPECT_EQ(dispatch_error([&](OutputCall& c) {
              add(c);
              c.projection.residual = c.terms[0];
            }),
            "gemm_o_dispatch: residual overlaps terms[0]");
}

TEST(GemmOChecks, TheBiasCache) {
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.order = 3; }),
            "gemm_o_update: cache.order is 3, must be between -1 and 2");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.order = -2; }),
            "gemm_o_update: cache.order is -2, must be between -1 and 2");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.terms[2] = {}; }),
            "gemm_o_update: terms[2] is missing");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.terms[1].dtype = DType::kBF16; }),
            "gemm_o_update: terms[1] is bf16, expected f32");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.terms[0] = c.projection.out.slice(1, 0, 8); }),
            "gemm_o_update: terms[0] is [2, 8, 6], expected [2, 9, 6]");
  EXPECT_EQ(update_error(
                [](OutputCall& c) { c.cache.valid_order = c.valid_order.view().slice(1, 0, 2); }),
            "gemm_o_update: valid_order is [2, 2], expected [2, 3]");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.terms[1] = c.cache.terms[0]; }),
            "gemm_o_update: terms[1] overlaps terms[0]");
  EXPECT_EQ(update_error([](OutputCall& c) { c.cache.terms[0] = c.projection.out; }),
            "gemm_o_update: terms[0] overlaps out");
  EXPECT_EQ(update_error([](OutputCall& c) { c.steps = 0; }),
            "gemm_o_update: steps_since_update is 0, must be positive");
}

TEST(GemmOChecks, StepsDoNotMatterWithoutDifferences) {
  OutputCall call;
  call.steps = 0;
  call.cache.order = 0;
  EXPECT_NO_THROW(call.update());
}

TEST(GemmOChecks, Dispatch) {
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.projection.bias = c.bias; }),
            "gemm_o_dispatch: bias must be {}, the bias cache contains it");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.cache = {}; }),
            "gemm_o_dispatch: cache.order is -1, there is no bias cache");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.coefficients = {}; }),
            "gemm_o_dispatch: 0 coefficients, expected between 1 and 3");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.cache.order = 1; }),
            "gemm_o_dispatch: 3 coefficients, expected between 1 and 2");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.cache.terms[0] = c.projection.out; }),
            "gemm_o_dispatch: out overlaps terms[0]");
  EXPECT_EQ(dispatch_error([](OutputCall& c) { c.projection.o = c.o.view().slice(2, 0, 8); }),
            "gemm_o_dispatch: o is [2, 9, 8], expected [2, 9, 12]");
}

}  // namespace
}  // namespace flashomni
