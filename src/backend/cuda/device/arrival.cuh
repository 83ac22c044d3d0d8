// arrival.cuh -- counters in global memory by which thread blocks learn that others have written.
//
// A block counts itself in one thread after a __syncthreads(); whoever has read the count, and the
// threads of its block after another __syncthreads(), see what that block wrote before. Likewise a
// warp, with __syncwarp().
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::cuda {

// Counts one more; returns how many came before, whose writes are visible then.
__device__ inline int count_arrival(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// Counts one more, and waits for no answer.
__device__ inline void announce_arrival(int* counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

// Waits until so many have come, all of which must be running by then.
__device__ inline void await_arrivals(const int* counter, int count) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen != count);
}

}  // namespace flashomni::cuda
