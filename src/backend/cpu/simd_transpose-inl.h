// simd_transpose-inl.h -- 64 rows to columns of 64 lanes, and back. Included once a target.
// SPDX-License-Identifier: Apache-2.0
#if defined(FLASHOMNI_CPU_SIMD_TRANSPOSE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHOMNI_CPU_SIMD_TRANSPOSE_INL_H
#undef FLASHOMNI_CPU_SIMD_TRANSPOSE_INL_H
#else
#define FLASHOMNI_CPU_SIMD_TRANSPOSE_INL_H
#endif

#include "backend/cpu/kernels.h"  // kPanel
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {

// transpose_rows: columns[c, row] = factor * rows[row, c]
// transpose_back: rows[row, c] = factors[row] * columns[c, row]
// for kPanel rows and `count` columns, a multiple of 4.
#if HWY_TARGET == HWY_SCALAR

HWY_INLINE void transpose_rows(const float* rows, index_t stride, int count, float factor,
                               float* columns) {
  for (int i = 0; i < count * kPanel; ++i) {
    columns[i] = rows[i % kPanel * stride + i / kPanel] * factor;
  }
}

template <typename T>
HWY_INLINE void transpose_back(const float* columns, const float* factors, int count, T* rows,
                               index_t stride) {
  for (int i = 0; i < count * kPanel; ++i) {
    rows[i % kPanel * stride + i / kPanel] = from_float<T>(columns[i] * factors[i % kPanel]);
  }
}

#else

// A vector whose 128-bit block j holds four floats of row j, and the way back.
template <class D>
HWY_INLINE hn::Vec<D> load_blocks(D d, const float* rows, index_t stride) {
  if constexpr (hn::MaxLanes(d) <= 4) {
    return hn::LoadU(d, rows);
  } else {
    const hn::Half<D> half;
    constexpr int kHalfRows = static_cast<int>(hn::MaxLanes(d)) / 8;
    return hn::Combine(d, load_blocks(half, rows + kHalfRows * stride, stride),
                       load_blocks(half, rows, stride));
  }
}

template <class D, typename T>
HWY_INLINE void store_blocks(D d, hn::Vec<D> value, T* rows, index_t stride) {
  if constexpr (hn::MaxLanes(d) <= 4) {
    store(d, value, rows);
  } else {
    const hn::Half<D> half;
    constexpr int kHalfRows = static_cast<int>(hn::MaxLanes(d)) / 8;
    store_blocks(half, hn::LowerHalf(half, value), rows, stride);
    store_blocks(half, hn::UpperHalf(half, value), rows + kHalfRows * stride, stride);
  }
}

// Transposes the 4 x 4 floats that four vectors hold in each 128-bit block.
HWY_INLINE void transpose_blocks(FloatVec (&v)[4]) {
  const Floats d;
  const FloatVec low02 = hn::InterleaveLower(d, v[0], v[2]);
  const FloatVec low13 = hn::InterleaveLower(d, v[1], v[3]);
  const FloatVec high02 = hn::InterleaveUpper(d, v[0], v[2]);
  const FloatVec high13 = hn::InterleaveUpper(d, v[1], v[3]);
  v[0] = hn::InterleaveLower(d, low02, low13);
  v[1] = hn::InterleaveUpper(d, low02, low13);
  v[2] = hn::InterleaveLower(d, high02, high13);
  v[3] = hn::InterleaveUpper(d, high02, high13);
}

HWY_INLINE void transpose_rows(const float* rows, index_t stride, int count, float factor,
                               float* columns) {
  const Floats d;
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    for (int column = 0; column < count; column += 4) {
      FloatVec v[4];
      for (int i = 0; i < 4; ++i) {
        v[i] = load_blocks(d, rows + (lane + i) * stride + column, 4 * stride);
      }
      transpose_blocks(v);
      for (int i = 0; i < 4; ++i) {
        hn::StoreU(hn::Mul(v[i], hn::Set(d, factor)), d, columns + (column + i) * kPanel + lane);
      }
    }
  }
}

template <typename T>
HWY_INLINE void transpose_back(const float* columns, const float* factors, int count, T* rows,
                               index_t stride) {
  const Floats d;
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const FloatVec factor = hn::LoadU(d, factors + lane);
    for (int column = 0; column < count; column += 4) {
      FloatVec v[4];
      for (int i = 0; i < 4; ++i) {
        v[i] = hn::Mul(hn::LoadU(d, columns + (column + i) * kPanel + lane), factor);
      }
      transpose_blocks(v);
      for (int i = 0; i < 4; ++i) {
        store_blocks(d, v[i], rows + (lane + i) * stride + column, 4 * stride);
      }
    }
  }
}

#endif  // HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
