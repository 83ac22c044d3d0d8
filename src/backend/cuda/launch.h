// launch.h -- kernels that start beside the end of the one before them in their stream.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "backend/cuda/check_cuda.h"

namespace flashomni::cuda {

// `function` waits for the kernel before by itself, in every thread that reads or writes what
// another kernel does (await_previous_kernel in device/barrier.cuh). Memory that no kernel writes,
// such as an uploaded table, can be read before the wait.
template <typename... Parameters>
void launch_early(void (*function)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
                  cudaStream_t stream, const std::type_identity_t<Parameters>&... parameters) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  FO_CUDA(cudaLaunchKernelEx(&config, function, parameters...));
}

}  // namespace flashomni::cuda
