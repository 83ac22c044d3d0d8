// tensor_map.h -- descriptors with which the TMA unit moves boxes of a tensor.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>  // CUtensorMap

#include <array>
#include <span>

#include "flashomni/tensor.h"

namespace flashomni::cuda {

// A tensor of device memory, bf16, f16 or f32, axes from the fastest; the first has stride 1.
struct TmaTensor {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  std::array<index_t, 4> sizes{};
  std::array<index_t, 4> strides{};  // in elements, multiples of 16 bytes
  int rank = 0;
};

// Throws kUnsupported unless the tensor begins, and steps along its axes, at multiples of 16 bytes:
// what the TMA unit needs, and loads and stores of 16 bytes.
void check_alignment(const TmaTensor& tensor);

// Boxes of 128 bytes of columns x `rows` along axis `row_axis`, 1 along the others, in the 128-byte
// swizzle of device/tma.cuh; what lies outside the tensor reads as zero and is not written.
CUtensorMap make_tensor_map(const TmaTensor& tensor, int row_axis, int rows);

}  // namespace flashomni::cuda
