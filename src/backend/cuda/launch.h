// launch.h -- starts kernels that wait by themselves for the one before in their stream.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "backend/cuda/check_cuda.h"

namespace flashomni::cuda {

// Launches beside the end of the kernel before; `function` waits for that by itself
// (await_previous_kernel).
template <typename... Parameters>
void launch_early(void (*function)(Parameters...), int grid, int threads, int shared_bytes,
                  cudaStream_t stream, const std::type_identity_t<Parameters>&... parameters) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  FO_CUDA(cudaLaunchKernelEx(&config, function, parameters...));
}

}  // namespace flashomni::cuda
