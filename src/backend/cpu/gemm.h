// gemm.h -- every projection of the cpu backend, over weights packed in panels of 64 columns.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "backend/cpu/context.h"
#include "flashomni/plan.h"

namespace flashomni::cpu {

// The contracts of Backend's functions of the same names (flashomni/backend.h, flashomni/gemm.h).
PackedWeight pack_weight(Context& context, ConstTensorView weight, DType dtype, int column_group);
void linear(Context& context, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            Activation activation, TensorView out);
void gemm_q(Context& context, const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
            ConstTensorView bias, const NormRope& epilogue, TensorView out);
void gemm_o_update(Context& context, const GemmPlan& plan, const OutputProjection& projection,
                   float steps_since_update, const BiasCacheView& cache);
void gemm_o_dispatch(Context& context, const GemmPlan& plan, const OutputProjection& projection,
                     std::span<const float> coefficients, const BiasCacheView& cache);

}  // namespace flashomni::cpu
