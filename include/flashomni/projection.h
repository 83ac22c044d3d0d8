// projection.h -- the operands of linear layers and of the two sparse projections.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/plan.h"
#include "flashomni/tensor.h"

namespace flashomni {

// A weight matrix [out_features, in_features] in whatever order the backend's kernels read.
struct PackedWeight {
  Tensor storage;
  index_t out_features = 0, in_features = 0;
  DType dtype = DType::kF32;  // operands are rounded to this; sums are fp32
  int column_group = 0;       // out_features per head (gemm_q), or 0: no grouping
};

enum class Activation { kNone, kGeluTanh, kSilu };

// What GEMM-Q does to a finished (row block, head) tile before storing it: RMS norm over head_dim,
// then rotary embedding of the interleaved pairs (2i, 2i + 1).
struct NormRope {
  ConstTensorView norm_weight;  // [head_dim] f32, or {} = no norm
  float eps = 1e-6f;
  ConstTensorView cos, sin;  // [num_rows, head_dim / 2] f32, row = row of the matrix; {} = no rope
};

// One of several projections of the same x, each as gemm_q() has it (gemm.h).
struct InputProjection {
  const GemmPlan* plan = nullptr;
  const PackedWeight* weight = nullptr;
  ConstTensorView bias;
  NormRope epilogue;
  TensorView out;
};

inline constexpr int kMaxForecastOrder = 2;

// The projected bias cache B_c of GEMM-O and its finite differences (arXiv:2509.25401; spec of
// the orders: docs/paper_map.md). Written by gemm_o_update, read by gemm_o_dispatch.
struct BiasCacheView {
  int order = -1;  // highest order kept, 0..2; -1: no cache (gemm_o_update just projects)
  // [batch, num_rows, out_features], all f32 or all Backend::bias_cache_dtype()
  TensorView terms[kMaxForecastOrder + 1];
  TensorView valid_order;  // u8 [batch, num_q_blocks]: highest order usable in a row block
};

// One output projection: value = sum over heads o_h W_h (+ mlp W_m) + bias. `o`, `mlp` and `out`
// have the weight's dtype. Exactly one of `out` and `residual` is given:
//   out = value, or residual += gate * value, with the value not rounded to the weight's dtype:
//   once all of its terms are summed, one f32 product and one f32 sum, fused or not by the backend.
struct OutputProjection {
  const PackedWeight* weight = nullptr;  // [out_features, num_heads * head_dim (+ mlp_dim)]
  ConstTensorView bias;                  // [out_features] f32, or {}
  ConstTensorView o;                     // [batch, num_rows, num_heads * head_dim]
  ConstTensorView mlp;  // [batch, num_rows, mlp_dim], or {}: the second half of a single-stream
                        // block's concat[attention, mlp]; never enters the bias cache
  TensorView out = {};  // [batch, num_rows, out_features], or {}
  TensorView residual = {};   // [batch, num_rows, out_features] f32, added to in place, or {}
  ConstTensorView gate = {};  // [out_features] f32, of `residual`; {} = 1
};

}  // namespace flashomni
