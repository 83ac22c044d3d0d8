// barrier.cuh -- mbarriers between the TMA unit and warps, and named barriers between warpgroups.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda/ptx>

#include <cstdint>

namespace flashomni::cuda {

namespace ptx = ::cuda::ptx;

// An mbarrier in shared memory. A phase completes when `arrivals` threads have arrived and all
// announced bytes have landed.
struct Barrier {
  std::uint64_t state;

  __device__ void init(int arrivals) { ptx::mbarrier_init(&state, arrivals); }
  __device__ void arrive() { ptx::mbarrier_arrive(&state); }
  // Arrives, and lets the phase wait for `bytes` from TMA loads besides.
  __device__ void arrive_expecting(int bytes) {
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &state,
                                   bytes);
  }
  // Waits until the phase of this parity has completed.
  __device__ void wait(std::uint32_t parity) {
    while (!ptx::mbarrier_try_wait_parity(&state, parity)) {
    }
  }
  // Arrives at this barrier in thread block `rank` of the cluster. For the end of reads by the
  // tensor cores, which are waited for: the release is of block scope, one of cluster scope would
  // be a fence of all memory.
  __device__ void arrive_at(int rank) {
    const auto local = static_cast<std::uint32_t>(__cvta_generic_to_shared(&state));
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(local),
        "r"(rank)
        : "memory");
  }
};

__device__ inline int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Stores 16 bytes to the place of `to` in thread block `rank` of the cluster; they count for the
// barrier at the place of `barrier` there.
__device__ inline void store_at(int rank, void* to, float4 value, Barrier& barrier) {
  const auto place = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const auto local = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier.state));
  asm volatile(
      "{\n.reg .b32 there, remote;\nmapa.shared::cluster.u32 there, %0, %2;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], "
      "{%3, %4, %5, %6}, [remote];\n}" ::"r"(place),
      "r"(local), "r"(rank), "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)),
      "r"(__float_as_uint(value.z)), "r"(__float_as_uint(value.w))
      : "memory");
}
// __syncthreads() over all blocks of the cluster.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Makes initialised mbarriers visible to the TMA unit; follow it with __syncthreads().
__device__ inline void fence_barrier_init() {
  ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
}

// A position in a ring of kSlots buffers. `phase` flips at each wrap: a consumer waits for the
// slot's "full" barrier with parity phase, a producer for its "empty" barrier with phase ^ 1.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  std::uint32_t phase = 0;

  __device__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Hardware barriers 1..15 of a thread block (0 belongs to __syncthreads). `threads` counts those
// that wait and those that only arrive.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Whether the predicate holds in any of the `threads` threads of the barrier, whole warps. The vote
// tells the compiler that a warp agrees; without it the code after takes divergence into account.
__device__ inline bool named_barrier_any(int id, int threads, bool predicate) {
  int any;
  asm volatile(
      "{\n.reg .pred mine, all;\nsetp.ne.s32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred all, %1, %2, mine;\nselp.s32 %0, 1, 0, all;\n}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<int>(predicate))
      : "memory");
  return __any_sync(~0u, any);
}

// Of a kernel launched beside the end of the one before it in its stream: lets the next one be
// launched likewise, and waits until the one before has finished and its writes are visible.
__device__ inline void release_next_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ inline void await_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Moves registers between warpgroups; every thread of the warpgroup executes it once.
template <int kRegisters>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace flashomni::cuda
