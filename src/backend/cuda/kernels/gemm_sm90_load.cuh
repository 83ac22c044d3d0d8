// gemm_sm90_load.cuh -- tile sizes, shared memory and the producing warps of gemm_sm90.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/kernels/gemm_params.h"

namespace flashomni::cuda {

// kHeadDim matters to kHeads alone.
template <typename T, GemmKind kKind_, int kHeadDim_ = 128>
struct GemmSm90 {
  using Element = T;
  static constexpr GemmKind kKind = kKind_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kTileM = 128, kTileN = 256, kTileK = kPanelColumns;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kStages = 4;  // of 48 KiB
  static constexpr int kABytes = kTileM * kTileK * 2, kWBytes = kTileN * kTileK * 2;
  static constexpr bool kProjectsO = kKind == GemmKind::kUpdate || kKind == GemmKind::kDispatch;
  static constexpr bool kPrefetches = kKind == GemmKind::kDispatch;

  struct SharedStorage {
    alignas(1024) T a[kStages][kTileM * kTileK];
    alignas(1024) T w[kStages][kTileN * kTileK];
    GemmTile tile[2];  // num_rows < 0: there are no more
    Barrier tile_full[2], tile_empty[2];
    Barrier full[kStages], empty[kStages];
  };
  using Ring = RingPosition<kStages>;
  using TileRing = RingPosition<2>;

  // Heads of this block's half of a tile of kHeads, after those of the block before.
  __device__ static int heads_of(const GemmTile& tile, int rank) {
    return (tile.num_live + 1 - rank) / 2;
  }
  __device__ static int count_slices(const GemmParams& params, const GemmTile& tile) {
    if (!kProjectsO) return params.slices;
    const int heads = tile.num_live + (kKind == GemmKind::kUpdate ? tile.num_cached : 0);
    return heads * params.slices_per_head + params.mlp_slices;
  }
};

// One thread.
template <typename Kernel>
struct GemmLoader {
  using T = typename Kernel::Element;
  static constexpr GemmKind kKind = Kernel::kKind;
  static constexpr int kTileK = Kernel::kTileK, kTileM = Kernel::kTileM;

  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int rank;
  typename Kernel::Ring ring{};
  typename Kernel::TileRing tile_ring{};

  // Both blocks of a cluster walk the same tiles.
  __device__ GemmTile tile_at(int index) const {
    if constexpr (kKind == GemmKind::kLinear) {
      const int row = index / params.column_tiles * kTileM;
      const int column = index % params.column_tiles * 2 * Kernel::kTileN;
      return {0, row, min(params.rows - row, kTileM), column, 0, 0, 0, 0, 0};
    }
    return params.tiles[index];
  }
  __device__ void publish(GemmTile tile) {
    shared.tile_empty[tile_ring.slot].wait(tile_ring.phase ^ 1);
    shared.tile[tile_ring.slot] = tile;
    shared.tile_full[tile_ring.slot].arrive();
    tile_ring.advance();
  }

  // Columns of A and W of a slice of an output projection.
  struct Slice {
    const CUtensorMap* a_map;
    int a_column, w_column;
  };
  __device__ Slice find_slice(const GemmTile& tile, int slice) const {
    const int first = tile.first_head + (kKind == GemmKind::kDispatch ? tile.num_cached : 0);
    const int head_slices = Kernel::count_slices(params, tile) - params.mlp_slices;
    if (slice < head_slices) {
      const int head = params.heads[first + slice / params.slices_per_head];
      const int column = (head * params.slices_per_head + slice % params.slices_per_head) * kTileK;
      return {&params.a_map, column, column};
    }
    const int column = (slice - head_slices) * kTileK;
    return {&params.mlp_map, column, params.mlp_column + column};
  }

  __device__ void load_slice(const GemmTile& tile, int slice) {
    shared.empty[ring.slot].wait(ring.phase ^ 1);
    Barrier& full = shared.full[ring.slot];
    T* w = shared.w[ring.slot];
    Slice from{&params.a_map, slice * kTileK, slice * kTileK};
    if constexpr (kKind == GemmKind::kHeads) {
      const int heads = Kernel::heads_of(tile, rank);
      const int first = tile.first_head + (rank == 1 ? Kernel::heads_of(tile, 0) : 0);
      full.arrive_expecting(Kernel::kABytes + heads * Kernel::kHeadDim * kTileK * 2);
      for (int i = 0; i < heads; ++i) {
        tma_load(w + i * Kernel::kHeadDim * kTileK, &params.w_map, full, from.w_column,
                 params.heads[first + i] * Kernel::kHeadDim);
      }
    } else {
      if constexpr (Kernel::kProjectsO) from = find_slice(tile, slice);
      full.arrive_expecting(Kernel::kABytes + Kernel::kWBytes);
      tma_load(w, &params.w_map, full, from.w_column, tile.column + rank * Kernel::kTileN);
    }
    constexpr int kHalfRows = kTileM / 2;
    tma_load_to_both(shared.a[ring.slot] + rank * kHalfRows * kTileK, from.a_map, full,
                     from.a_column, tile.row + rank * kHalfRows, tile.batch);
    ring.advance();
  }

  __device__ void run() {
    for (int index = blockIdx.x / 2; index < params.num_tiles; index += gridDim.x / 2) {
      const GemmTile tile = tile_at(index);
      publish(tile);
      const int slices = Kernel::count_slices(params, tile);
      for (int slice = 0; slice < slices; ++slice) load_slice(tile, slice);
    }
    publish({0, 0, -1, 0, 0, 0, 0, 0, 0});
  }
};

// Brings `columns` fp32 columns of the tile's rows of a term into L2. One warp.
__device__ inline void prefetch_rows(const float* first_row, int num_rows, int row_stride,
                                     int columns) {
  constexpr int kLine = 128 / sizeof(float);
  for (int row = threadIdx.x % 32; row < num_rows; row += 32) {
    const float* at = first_row + static_cast<std::int64_t>(row) * row_stride;
    for (int i = 0; i < columns; i += kLine) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
  }
}

// Brings the bias cache of each tile into L2 while the tile's products run. One warp.
template <typename Kernel>
__device__ void prefetch_terms(const GemmParams& params, typename Kernel::SharedStorage& shared,
                               int rank) {
  typename Kernel::TileRing ring{};
  while (true) {
    shared.tile_full[ring.slot].wait(ring.phase);
    const GemmTile tile = shared.tile[ring.slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.tile_empty[ring.slot].arrive();
    ring.advance();
    if (tile.num_rows < 0) return;
    const int column = tile.column + rank * Kernel::kTileN;
    const std::int64_t at = tile.batch * params.term_batch_stride +
                            static_cast<std::int64_t>(tile.row) * params.out_features + column;
    const int columns = min(Kernel::kTileN, params.out_features - column);
    for (int o = 0; o <= params.order; ++o) {
      prefetch_rows(params.terms[o] + at, tile.num_rows, params.out_features, columns);
    }
  }
}

}  // namespace flashomni::cuda
