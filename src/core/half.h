// half.h -- bf16 and f16 as storage types: convert to and from float, no arithmetic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

#include "flashomni/tensor.h"

namespace flashomni {

struct BFloat16 {
  std::uint16_t bits = 0;
};

struct Half {
  std::uint16_t bits = 0;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float to_float(Half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // inf, nan
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
}

// Round to nearest even; nan stays nan.
inline BFloat16 to_bfloat16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(u >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

inline Half to_half(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = u >> 16 & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: let the FPU round to a multiple of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;  // 0.5 has ulp 2^-24
    return {
        static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
}

template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  return to_bfloat16(x);
}
template <>
inline Half from_float<Half>(float x) {
  return to_half(x);
}

// Calls f with a value of the C++ type that stores `dtype`: float, BFloat16 or Half.
// The one place that switches on a floating dtype at run time.
template <typename F>
decltype(auto) dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBF16: return f(BFloat16{});
    case DType::kF16: return f(Half{});
    default: return f(float{});
  }
}

inline bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// One element of a float tensor, by element offset. For the reference backend and loaders; slow.
inline float load_float(ConstTensorView view, index_t offset) {
  return dispatch_float(view.dtype,
                        [&](auto type) { return to_float(view.as<decltype(type)>()[offset]); });
}
inline void store_float(TensorView view, index_t offset, float value) {
  dispatch_float(view.dtype, [&](auto type) {
    using T = decltype(type);
    view.as<T>()[offset] = from_float<T>(value);
  });
}

}  // namespace flashomni
