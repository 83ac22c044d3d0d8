// low_prefix.cuh -- the smallest values whose sum stays within a bound, found without sorting.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/warp.cuh"

namespace flashomni::cuda {

// The selected values are those below `limit`, as bits, and the first `ties` of those equal to it.
// Bits of floats that are not negative are ordered as the floats are.
struct LowPrefix {
  unsigned limit;
  int ties;
};

// Of `values` [count] in shared memory, of which negative ones are no candidates: as many of the
// smallest, ties by position, as sum to at most tau of the total; never all. None if tau <= 0 or
// the total is not finite. One warp, which gets the same answer in all lanes.
//
// `limit` is the largest number x such that the values below x fit, and is found two bits at a
// time. All sums run in the same order and rounding is monotone, so that they grow with x.
__device__ inline LowPrefix low_prefix(const float* values, int count, float tau) {
  const int lane = threadIdx.x % 32;
  float total = 0, top = -1;
  for (int i = lane; i < count; i += 32) {
    total += values[i] < 0 ? 0 : values[i];  // NaN goes through
    top = fmaxf(top, values[i]);
  }
  total = warp_sum(total);
  top = warp_max(top);
  if (!(tau > 0) || !(total < INFINITY) || top < 0) return {};
  const float bound = tau * total;
  const unsigned largest = __float_as_uint(top);

  LowPrefix low{};
  float fitting = 0;  // the sum below `limit`
  for (int shift = 30; shift >= 0; shift -= 2) {
    float below[3] = {0, 0, 0};
    for (int i = lane; i < count; i += 32) {
      const float value = values[i];
#pragma unroll
      for (unsigned digit = 1; digit <= 3; ++digit) {
        if (__float_as_uint(value) < low.limit + (digit << shift)) below[digit - 1] += value;
      }
    }
    unsigned step = 0;
#pragma unroll
    for (unsigned digit = 1; digit <= 3; ++digit) {
      const float sum = warp_sum(below[digit - 1]);
      if (low.limit + (digit << shift) > largest || sum > bound) continue;
      step = digit << shift;
      fitting = sum;
    }
    low.limit += step;
  }

  int equal = 0;
  for (int i = lane; i < count; i += 32) equal += __float_as_uint(values[i]) == low.limit;
  equal = __reduce_add_sync(~0u, equal);
  const float value = __uint_as_float(low.limit);
  const float room = value > 0 ? (bound - fitting) / value : static_cast<float>(equal);
  low.ties = room < static_cast<float>(equal - 1) ? static_cast<int>(room) : equal - 1;
  return low;
}

// Walks positions 32 at a time, a warp together: whether each lane's is selected.
class LowPrefixWalk {
 public:
  __device__ explicit LowPrefixWalk(LowPrefix low) : low_(low) {}

  // A value past the end is passed as a negative one.
  __device__ bool selects(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned equal = __ballot_sync(~0u, bits == low_.limit);
    const int rank = seen_ + __popc(equal & ((1u << (threadIdx.x % 32)) - 1));
    seen_ += __popc(equal);
    return bits < low_.limit || (bits == low_.limit && rank < low_.ties);
  }

 private:
  LowPrefix low_;
  int seen_ = 0;  // values equal to the limit before this step
};

}  // namespace flashomni::cuda
