// warp.cuh -- reductions over a warp, the result in every lane.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::cuda {

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// Of four sums the one numbered lane / 8, lanes added in the order of warp_sum, with 6 shuffles
// instead of 20.
__device__ inline float warp_sum_of_four(const float (&x)[4]) {
  const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
  float first = upper ? x[2] : x[0], second = upper ? x[3] : x[1];
  first += __shfl_xor_sync(~0u, upper ? x[0] : x[2], 16);
  second += __shfl_xor_sync(~0u, upper ? x[1] : x[3], 16);
  float sum = odd ? second : first;
  sum += __shfl_xor_sync(~0u, odd ? first : second, 8);
  for (int distance = 4; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  return sum;
}

// Of numbers, -inf among them. One instruction for the bits, in an order that is that of floats.
__device__ inline float warp_max(float x) {
  constexpr unsigned kSign = 0x80000000u;
  const unsigned bits = __float_as_uint(x);
  const unsigned top = __reduce_max_sync(~0u, bits & kSign ? ~bits : bits | kSign);
  return __uint_as_float(top & kSign ? top & ~kSign : ~top);
}

}  // namespace flashomni::cuda
