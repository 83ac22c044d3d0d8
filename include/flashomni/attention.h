// attention.h -- one attention layer restricted to the live blocks of a plan.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/backend.h"
#include "flashomni/plan.h"
#include "flashomni/tensor.h"

namespace flashomni {

// out = softmax(scale * q k^T) v, summed only over the (q, kv) block pairs live in `plan`.
//
//   q, out  [batch, seq_len, num_heads, head_dim]     f32, bf16 or f16; last stride 1
//   k, v    [batch, kv_len, num_kv_heads, head_dim]   dtype and device of q; num_heads is a
//                                                     multiple of num_kv_heads
//   lse     [batch, num_heads, seq_len]               f32, natural log; {} = not wanted
//   scale   multiplies the logits before softmax, usually 1 / sqrt(head_dim)
//
//   reuse   terms [batch, seq_len, num_heads, head_dim], all f32 or all of q's dtype, last stride 1
//
// The softmax is normalised over the kept tokens only. Rows of `out` in cached query blocks become
// the forecast of `reuse`, in the same launch; without one, and past an item's length, they are
// left untouched: they are the caller's. So are rows of `lse` that are not computed. A live query
// row with no live kv block gives out = 0, lse = -inf. `out` may not overlap the inputs.
// Enqueues on `stream` and returns (CPU backends compute before returning); `plan` must outlive
// the work.
// Throws Error(kInvalidArgument) naming the tensor that disagrees with `plan`, and
// Error(kUnsupported) if the backend has no kernel for (dtype, head_dim).
// Source: arXiv:2509.25401, unified sparse attention kernel.
void attention(Backend& backend, const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
               ConstTensorView v, float scale, TensorView out, TensorView lse = {},
               Stream stream = {}, const AttentionReuse& reuse = {});

}  // namespace flashomni
