// attention_sm90.cuh -- the table row of one attention kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/kernels.h"
#include "backend/cuda/kernels/attention_sm90.cuh"

namespace flashomni::cuda {

template <typename T, int kHeadDim>
AttentionKernel attention_sm90_row(DType dtype) {
  using Kernel = AttentionSm90<T, kHeadDim>;
  return {90,
          dtype,
          kHeadDim,
          attention_sm90_kernel<Kernel>,
          Kernel::kThreads,
          static_cast<int>(sizeof(typename Kernel::SharedStorage)),
          static_cast<int>(sizeof(AttentionPartial<kHeadDim>))};
}

}  // namespace flashomni::cuda
