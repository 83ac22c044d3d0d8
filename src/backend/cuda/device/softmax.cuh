// softmax.cuh -- the online softmax of a warpgroup's score tile, in WGMMA's accumulator layout.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/device/fragment.cuh"

namespace flashomni::cuda {

__device__ inline float exp2_approx(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <typename T>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<__half> = true;

// The running statistics of the two rows that a thread holds. Weights are
// 2^(scale_log2 * s - reference), and results relative to any reference are the same after the
// division by their sum. So the reference need not be the maximum: it is the maximum of an item's
// first tile, and moves only when a later tile's weights would leave the range of T
// (kLargestTileSum), which costs that tile a second pass. Tiles in between need no maximum.
template <typename T>
struct SoftmaxRows {
  // Room for the sums and the output to grow by 2^60 in fp32 and bf16; weights of f16 end at 2^16.
  static constexpr float kLargestTileSum = kIsHalf<T> ? 0x1p15f : 0x1p64f;

  float reference[2];
  float sum[2];  // this thread's share; the reference is the same in a quad

  __device__ void begin(const float (&top)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reference[half] = top[half];
      sum[half] = 0;
    }
  }

  // s[kBegin .. kEnd) become weights; adds them to tile_sum.
  template <int kBegin, int kEnd, int kCount>
  __device__ void exponentiate(float (&s)[kCount], float scale_log2, float (&tile_sum)[2]) const {
#pragma unroll
    for (int i = kBegin; i < kEnd; ++i) {
      const int half = i / 2 % 2;
      s[i] = exp2_approx(fmaf(s[i], scale_log2, -reference[half]));
      tile_sum[half] += s[i];
    }
  }

  // Whether this thread's rows have to move their reference. NaN does not.
  __device__ static bool out_of_range(const float (&tile_sum)[2]) {
    return tile_sum[0] > kLargestTileSum || tile_sum[1] > kLargestTileSum;
  }

  // Moves the reference to the maxima; earlier results have to be multiplied by `correction`.
  __device__ void move(const float (&top)[2], float (&correction)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float moved_to = fmaxf(reference[half], top[half]);
      correction[half] = exp2_approx(reference[half] - moved_to);
      reference[half] = moved_to;
      sum[half] *= correction[half];
    }
  }
};

// scale_log2 times the maxima of the two rows of a score tile.
template <int kCount>
__device__ inline void row_maxima(const float (&s)[kCount], float scale_log2, float (&top)[2]) {
  float m[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
  for (int j = 1; j < kCount / 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) m[i] = fmaxf(m[i], s[4 * j + i]);
  }
  top[0] = fmaxf(m[0], m[1]);
  top[1] = fmaxf(m[2], m[3]);
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const float other[2] = {__shfl_xor_sync(~0u, top[0], distance),
                            __shfl_xor_sync(~0u, top[1], distance)};
    top[0] = fmaxf(top[0], other[0]);
    top[1] = fmaxf(top[1], other[1]);
  }
  top[0] *= scale_log2;
  top[1] *= scale_log2;
}

}  // namespace flashomni::cuda
