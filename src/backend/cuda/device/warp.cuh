// warp.cuh -- reductions over a warp, the result in every lane.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::cuda {

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  }
  return x;
}

}  // namespace flashomni::cuda
