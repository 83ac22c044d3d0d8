// elementwise.h -- norms, residuals and forecasts of the cpu backend, split over its threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "backend/cpu/context.h"

namespace flashomni::cpu {

// The contracts of Backend's functions of the same names.
void norm_modulate(Context& context, ConstTensorView x, ConstTensorView shift,
                   ConstTensorView scale, float eps, TensorView out);
void gated_add(Context& context, ConstTensorView y, ConstTensorView gate, TensorView residual);
void forecast(Context& context, std::span<const TensorView> terms,
              std::span<const float> coefficients, TensorView out);
void push_differences(Context& context, ConstTensorView value, int order, float steps,
                      std::span<const TensorView> terms);

}  // namespace flashomni::cpu
