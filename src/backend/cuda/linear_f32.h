// linear_f32.h -- launches a linear layer of f32 operands on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "flashomni/backend.h"

namespace flashomni::cuda {

// The contract of Backend::linear for an f32 weight, on any GPU.
void launch_linear_f32(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                       Activation activation, TensorView out, cudaStream_t stream);

}  // namespace flashomni::cuda
