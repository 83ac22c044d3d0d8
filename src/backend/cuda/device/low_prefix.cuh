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

// The smallest and the largest of some numbers, as bits.
struct BitRange {
  unsigned low = ~0u, high = 0;
  __device__ void add(unsigned bits) {
    low = min(low, bits);
    high = max(high, bits);
  }
  // Over a warp.
  __device__ BitRange all() const {
    return {__reduce_min_sync(~0u, low), __reduce_max_sync(~0u, high)};
  }
};

// Of `values` [count] in shared memory, of which negative ones are no candidates: as many of the
// smallest, ties by position, as sum to at most tau of the total; never all. None if tau <= 0 or
// the total is not finite. `count` is a multiple of 32. One warp, which gets the same answer in all
// lanes.
//
// `limit` is the largest of the values such that those below it fit. It lies in a range that four
// cuts divide into equal parts, in bits, and that then shrinks to the values of one part: a few
// rounds, whatever the values are. All sums run in the same order and rounding is monotone, so that
// they grow with the cut.
__device__ inline LowPrefix low_prefix(const float* values, int count, float tau) {
  const int lane = threadIdx.x % 32;
  float total = 0;
  BitRange range;
#pragma unroll 2
  for (int i = lane; i < count; i += 32) {
    if (values[i] < 0) continue;  // NaN goes through
    total += values[i];
    range.add(__float_as_uint(values[i]));
  }
  total = warp_sum(total);
  range = range.all();
  if (!(tau > 0) || !(total < INFINITY) || range.low > range.high) return {};
  const float bound = tau * total;

  float fitting = 0;  // the sum below range.low
  while (range.low < range.high) {
    constexpr int kCuts = 4;  // the last one at range.high
    const unsigned part = (range.high - range.low) / kCuts;
    float below[kCuts] = {};
#pragma unroll 2
    for (int i = lane; i < count; i += 32) {
      const float value = values[i];
#pragma unroll
      for (int cut = 0; cut < kCuts; ++cut) {
        const unsigned at = range.high - (kCuts - 1 - cut) * part;
        if (__float_as_uint(value) < at) below[cut] += value;
      }
    }
    const float sum = warp_sum_of_four(below);
    const int fits = __popc(__ballot_sync(~0u, sum <= bound)) / 8;  // those of lower cuts do too
    if (fits > 0) fitting = __shfl_sync(~0u, sum, 8 * (fits - 1));
    const unsigned first = fits > 0 ? range.high - (kCuts - fits) * part : range.low;
    const unsigned last = fits < kCuts ? range.high - (kCuts - 1 - fits) * part - 1 : range.high;
    BitRange rest;
#pragma unroll 2
    for (int i = lane; i < count; i += 32) {
      const unsigned bits = __float_as_uint(values[i]);
      if (bits >= first && bits <= last) rest.add(bits);
    }
    range = rest.all();
  }

  LowPrefix low{range.low, 0};
  int equal = 0;
#pragma unroll 2
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
