// gemm_sm90.cuh -- the table row of one projection kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/kernels.h"
#include "backend/cuda/kernels/gemm_sm90.cuh"

namespace flashomni::cuda {

template <typename T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<__nv_bfloat16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<__half> = DType::kF16;

// kHeadDim is 0 for the kinds that have no heads of a fixed size.
template <typename T, GemmKind kKind, int kHeadDim = 0, typename Term = T>
GemmKernel gemm_sm90_row() {
  using Kernel = GemmSm90<T, kKind, kHeadDim == 0 ? 128 : kHeadDim, Term>;
  return {90,
          kDTypeOf<T>,
          kKind,
          kHeadDim,
          kDTypeOf<Term>,
          gemm_sm90_kernel<Kernel>,
          Kernel::kThreads,
          static_cast<int>(sizeof(typename Kernel::SharedStorage))};
}

}  // namespace flashomni::cuda
