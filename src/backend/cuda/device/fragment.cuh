// fragment.cuh -- 16-bit fragments of WGMMA's register layouts (device/wgmma.cuh).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashomni::cuda {

// Four 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix): lane l passes row l % 8 of
// matrix l / 8. In WGMMA's A layout they are rows 0-7, rows 8-15, then both again 8 columns on.
__device__ inline void load_matrices(std::uint32_t* words, const void* row) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared)
               : "memory");
}

// The reverse (stmatrix).
__device__ inline void store_matrices(const std::uint32_t (&words)[4], void* row) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// A quad is the four threads that hold one row of a tile.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

template <typename T>
__device__ inline std::uint32_t pack(float low, float high);
template <>
__device__ inline std::uint32_t pack<__nv_bfloat16>(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ inline std::uint32_t pack<__half>(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <typename T>
__device__ inline float2 unpack(std::uint32_t word);
template <>
__device__ inline float2 unpack<__nv_bfloat16>(std::uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <>
__device__ inline float2 unpack<__half>(std::uint32_t word) {
  return __half22float2(reinterpret_cast<const __half2&>(word));
}

// words[j] of lane l becomes words[l] of lane j: a 4 x 4 transpose across a quad. It turns four
// words of 2 columns, one from each of 4 groups of 8, into the 8 columns of one group.
__device__ inline void transpose_quad(std::uint32_t (&words)[4], int lane) {
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const std::uint32_t sent = odd ? words[j] : words[j + 1];
    const std::uint32_t got = __shfl_xor_sync(~0u, sent, 1);
    (odd ? words[j] : words[j + 1]) = got;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const std::uint32_t sent = upper ? words[j] : words[j + 2];
    const std::uint32_t got = __shfl_xor_sync(~0u, sent, 2);
    (upper ? words[j] : words[j + 2]) = got;
  }
}

}  // namespace flashomni::cuda
