// gemm_sm90.cuh -- the table row of one projection kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/kernels.h"
#include "backend/cuda/kernels/gemm_sm90.cuh"

namespace flashomni::cuda {

// kHeadDim is 0 for the kinds that have no heads of a fixed size.
template <typename T, GemmKind kKind, int kHeadDim = 0>
GemmKernel gemm_sm90_row(DType dtype) {
  using Kernel = GemmSm90<T, kKind, kHeadDim == 0 ? 128 : kHeadDim>;
  return {90,
          dtype,
          kKind,
          kHeadDim,
          gemm_sm90_kernel<Kernel>,
          Kernel::kThreads,
          static_cast<int>(sizeof(typename Kernel::SharedStorage))};
}

}  // namespace flashomni::cuda
