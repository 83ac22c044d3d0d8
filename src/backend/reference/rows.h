// rows.h -- rows of tensors as vectors of fp32.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/half.h"

namespace flashomni {

// `count` elements from `offset`, widened to fp32; the last axis has stride 1.
inline std::vector<float> load_row(ConstTensorView view, index_t offset, index_t count) {
  std::vector<float> row(count);
  for (index_t i = 0; i < count; ++i) row[i] = load_float(view, offset + i);
  return row;
}

inline void store_row(TensorView view, index_t offset, const std::vector<float>& row) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    store_float(view, offset + static_cast<index_t>(i), row[i]);
  }
}

// Offset of the row [item, row] of a matrix [batch, num_rows, features].
template <typename Data>
index_t row_offset(const BasicTensorView<Data>& matrix, index_t item, index_t row) {
  return item * matrix.stride(0) + row * matrix.stride(1);
}

inline float dot(const std::vector<float>& a, const std::vector<float>& b) {
  float sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace flashomni
