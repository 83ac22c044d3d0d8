// tma.cuh -- bulk tensor loads of tiles that WGMMA can read.
//
// A tile is cut into panels of 64 columns (128 bytes of a 16-bit type, the width of the swizzle).
// A panel holds its rows one after the other, 128 bytes each, with 16-byte chunk c of row r stored
// at chunk c ^ (r & 7); eight rows make one 1024-byte swizzle atom.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>  // CUtensorMap
#include <cuda/ptx>

#include "backend/cuda/device/barrier.cuh"

namespace flashomni::cuda {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;
inline constexpr int kSwizzleAtomBytes = 1024;

// How long L2 keeps what passes through it (createpolicy's words for all of an access).
enum class KeepInL2 : std::uint64_t {
  kShort = 0x12F0000000000000,  // evict_first: read or written once
  kLong = 0x14F0000000000000,   // evict_last: read by everyone
};

// Loads the map's box at (column, head, row, item) to `to`; its bytes count for `barrier`.
__device__ inline void tma_load(void* to, const CUtensorMap* map, Barrier& barrier, int column,
                                int head, int row, int item) {
  const std::int32_t at[4] = {column, head, row, item};
  ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, to, map, at, &barrier.state);
}

// Loads the box at (column, row, item) to the same place in all thread blocks of a cluster of
// kBlocks; its bytes count for `barrier` in each.
template <int kBlocks = 2>
__device__ inline void tma_load_to_all(void* to, const CUtensorMap* map, Barrier& barrier,
                                       int column, int row, int item) {
  const std::int32_t at[3] = {column, row, item};
  constexpr std::uint16_t kAll = (1 << kBlocks) - 1;
  ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, to, map, at, &barrier.state,
                            kAll);
}

// The same for a matrix.
template <int kBlocks = 2>
__device__ inline void tma_load_to_all(void* to, const CUtensorMap* map, Barrier& barrier,
                                       int column, int row) {
  const std::int32_t at[2] = {column, row};
  constexpr std::uint16_t kAll = (1 << kBlocks) - 1;
  ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, to, map, at, &barrier.state,
                            kAll);
}

// Boxes at (column, row, item) or, of a matrix, (column, row), for this block alone.
__device__ inline void tma_load(void* to, const CUtensorMap* map, Barrier& barrier, int column,
                                int row, int item) {
  const std::int32_t at[3] = {column, row, item};
  ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, to, map, at, &barrier.state);
}
__device__ inline void tma_load(void* to, const CUtensorMap* map, Barrier& barrier, int column,
                                int row) {
  const std::int32_t at[2] = {column, row};
  ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, to, map, at, &barrier.state);
}

// Likewise with a hint to L2.
__device__ inline void tma_load(void* to, const CUtensorMap* map, Barrier& barrier, int column,
                                int row, KeepInL2 keep) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
          static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
      "l"(map), "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier.state))),
      "r"(column), "r"(row), "l"(static_cast<std::uint64_t>(keep))
      : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap* map, Barrier& barrier, int column,
                                int row, int item, KeepInL2 keep) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(
          static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
      "l"(map), "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier.state))),
      "r"(column), "r"(row), "r"(item), "l"(static_cast<std::uint64_t>(keep))
      : "memory");
}

// Writes a box to (column, row, item); what lies outside the tensor is left out. The threads that
// filled the box have each called fence_proxy_async before the caller knew of it.
__device__ inline void tma_store(const CUtensorMap* map, const void* from, int column, int row,
                                 int item) {
  const std::int32_t at[3] = {column, row, item};
  ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, map, at, from);
  ptx::cp_async_bulk_commit_group();
}
// Adds a box of f32 instead, element by element in L2; subnormal numbers count as zero.
__device__ inline void tma_add(const CUtensorMap* map, const void* from, int column, int row,
                               int item) {
  const std::int32_t at[3] = {column, row, item};
  ptx::cp_reduce_async_bulk_tensor(ptx::space_global, ptx::space_shared, ptx::op_add, map, at,
                                   from);
  ptx::cp_async_bulk_commit_group();
}
// Until this thread's stores have read shared memory, or are complete.
__device__ inline void tma_wait_for_reads() { ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>{}); }
__device__ inline void tma_wait_for_stores() { ptx::cp_async_bulk_wait_group(ptx::n32_t<0>{}); }
// Makes this thread's writes to shared memory visible to TMA stores.
__device__ inline void fence_shared_for_tma() { ptx::fence_proxy_async(ptx::space_shared); }

// Fetches a map, a kernel parameter, for the loads to come.
__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Before the use of maps [2] that another kernel wrote to global memory.
__device__ inline void acquire_tensor_maps(const CUtensorMap* maps) {
  for (int i = 0; i < 2; ++i) {
    ptx::fence_proxy_tensormap_generic(ptx::sem_acquire, ptx::scope_gpu, maps + i,
                                       ptx::n32_t<sizeof(CUtensorMap)>{});
  }
}

}  // namespace flashomni::cuda
