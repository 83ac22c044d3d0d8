// elementwise.h -- launches the memory-bound operations of a Backend on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "flashomni/backend.h"

#include "backend/cuda/check_cuda.h"

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

// Backend::block_scores with its device scratch. Waits for the device: scores are host vectors.
class BlockPooling {
 public:
  void run(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid, const BlockGrid& kv_grid,
           const BlockScoreOptions& options, BlockScores& scores, cudaStream_t stream);

 private:
  DeviceBuffer q_blocks_, kv_blocks_, whole_, head_means_, q_means_, k_means_;
  DeviceBuffer q_similarity_, k_similarity_, logits_;
};

}  // namespace flashomni::cuda
