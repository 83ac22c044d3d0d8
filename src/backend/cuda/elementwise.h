// elementwise.h -- launches the memory-bound operations of a Backend on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "flashomni/backend.h"

namespace flashomni::cuda {

// The contracts of the Backend functions of these names.
void launch_norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale,
                          float eps, TensorView out, cudaStream_t stream);
void launch_gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                      cudaStream_t stream);
void launch_forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                     TensorView out, cudaStream_t stream);
void launch_push_differences(ConstTensorView value, int order, float steps,
                             std::span<const TensorView> terms, cudaStream_t stream);

}  // namespace flashomni::cuda
