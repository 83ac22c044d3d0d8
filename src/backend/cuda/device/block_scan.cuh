// block_scan.cuh -- scans over the threads of a block.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::cuda {

struct Sum {
  static constexpr int kNothing = 0;
  __device__ int operator()(int a, int b) const { return a + b; }
};
struct Minimum {
  static constexpr unsigned kNothing = ~0u;
  __device__ unsigned operator()(unsigned a, unsigned b) const { return a < b ? a : b; }
};

template <typename T>
struct Scanned {
  T before;  // over the threads of lower index
  T all;
};

// Every thread of a block of kThreads calls it; `scratch` [kThreads / 32] in shared memory.
template <int kThreads, typename Operation, typename T>
__device__ Scanned<T> block_scan(T value, Operation combine, T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const T other = __shfl_up_sync(~0u, inclusive, distance);
    if (lane >= distance) inclusive = combine(other, inclusive);
  }
  if (lane == 31) scratch[warp] = inclusive;
  const T shifted = __shfl_up_sync(~0u, inclusive, 1);
  __syncthreads();
  Scanned<T> result{Operation::kNothing, Operation::kNothing};
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) result.before = result.all;
    result.all = combine(result.all, scratch[w]);
  }
  if (lane > 0) result.before = combine(result.before, shifted);
  __syncthreads();
  return result;
}

}  // namespace flashomni::cuda
