// gemm.h -- the two sparse projections around attention: GEMM-Q and GEMM-O.
//
// All functions enqueue on `stream` (CPU backends compute before returning), allocate nothing that
// is proportional to the work, and throw Error(kInvalidArgument) naming the offending argument, or
// Error(kUnsupported) if the backend has no kernel for (dtype, head_dim).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "flashomni/backend.h"
#include "flashomni/plan.h"
#include "flashomni/tensor.h"

namespace flashomni {

// out[b, t, head] = x[b, t, :] W[head]^T + bias[head] for every live (row block, head) of `plan`;
// other elements of `out` are not written. `weight` is packed with column_group = head_dim.
//
//   x     [batch, num_rows, in_features]            the weight's dtype
//   bias  [num_heads * head_dim] f32, or {}
//   out   [batch, num_rows, num_heads * head_dim]   the weight's dtype
//
// `epilogue` normalises and rotates each finished tile (NormRope in backend.h). An RMS norm over
// all heads (Wan) is not head-wise and cannot be fused here.
// Source: arXiv:2509.25401, GEMM-Q.
void gemm_q(Backend& backend, const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
            ConstTensorView bias, const NormRope& epilogue, TensorView out, Stream stream = {});

// The output projection of an update step, in one pass over W: per row block first
//   B_c = bias + sum over cached heads o_h W_h        -> cache.terms[0]
// then  out = B_c + sum over live heads o_h W_h (+ mlp W_m),
// which is the dense projection. Where a row block's cached heads are those of the last update
// (RowBlock::same_as_previous), the finite differences
//   terms[o + 1] <- (new terms[o] - old terms[o]) / steps_since_update
// are formed as far as valid_order allows and valid_order grows by one, up to cache.order;
// elsewhere valid_order becomes 0. With cache.order == -1 nothing is remembered.
// Rows past an item's length are not written, neither in `out` nor in the cache.
// With projection.residual instead of `out`, what is written above to `out` is added there, gated.
// Source: arXiv:2509.25401, GEMM-O; the validity rule is ours (docs/paper_map.md).
void gemm_o_update(Backend& backend, const GemmPlan& plan, const OutputProjection& projection,
                   float steps_since_update, const BiasCacheView& cache, Stream stream = {});

// The output projection of a dispatch step:
//   out = sum over o <= valid_order of coefficients[o] * terms[o]
//         + sum over live heads o_h W_h (+ mlp W_m).
// to `out` or `residual`. `o` of cached heads is never read; projection.bias must be {} because B_c
// contains it. coefficients[o] = k^o / o! (Taylor) or binomial (Newton), k = steps since the
// update; 1 <= coefficients.size() <= cache.order + 1.
void gemm_o_dispatch(Backend& backend, const GemmPlan& plan, const OutputProjection& projection,
                     std::span<const float> coefficients, const BiasCacheView& cache,
                     Stream stream = {});

}  // namespace flashomni
