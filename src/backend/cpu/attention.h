// attention.h -- drives the attention kernels over the items of a plan.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cpu/context.h"
#include "flashomni/plan.h"

namespace flashomni::cpu {

// The contract of flashomni::attention (flashomni/attention.h).
void attention(Context& context, const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
               ConstTensorView v, float scale, TensorView out, TensorView lse);
// The rows that attention() leaves out.
void reuse_cached(Context& context, const AttentionPlan& plan, const AttentionReuse& reuse,
                  TensorView out);

}  // namespace flashomni::cpu
