// gemm_sm90_config.cuh -- tile sizes, register split and shared memory of gemm_sm90.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/kernels/gemm_params.h"

namespace flashomni::cuda {

// Boxes are 64 rows of 128 bytes, swizzled (tma.cuh): what travels between a tensor and the
// epilogue of a warpgroup.
inline constexpr int kBoxRows = 64, kBoxBytes = 64 * 128;

// Where the box that a consumer warpgroup has filled is to go.
struct BoxJob {
  int target;    // 0: out, 1 + o: terms[o]; kHeads: out of this projection
  int num_rows;  // to write, up to 64; < 0: there are no more
  int batch, row, column;
};

// kHeadDim matters to kHeads alone, Term (of the bias cache) to kUpdate and kDispatch.
template <typename T, GemmKind kKind_, int kHeadDim_ = 128, typename Term_ = T>
struct GemmSm90 {
  using Element = T;
  using Term = Term_;
  static constexpr GemmKind kKind = kKind_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kCluster = 2;  // thread blocks
  static constexpr int kTileN = kWideTile, kTileK = kPanelColumns;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr bool kProjectsO = kKind == GemmKind::kUpdate || kKind == GemmKind::kDispatch;
  // Two heads of 64 live in the same row block are common, the same head of 128 live in other row
  // blocks is certain: a tile shares A in the first case and W in the second.
  static constexpr bool kByHead = kKind == GemmKind::kHeads && kHeadDim == 128;
  using Tile = std::conditional_t<kByHead, HeadTile, GemmTile>;

  // A stage is three panels of 128 rows x 64 summed columns: A W W, or W A A of HeadTile.
  static constexpr int kStages = 4, kPanelElements = 128 * kTileK, kPanelBytes = kPanelElements * 2;
  static constexpr int kTiles = 4;  // that the scheduler is ahead
  static constexpr int kBoxes = 2;  // on the way out, a warpgroup
  // Old terms come through the stages: two boxes a warpgroup.
  static constexpr int kTermColumns = 128 / static_cast<int>(sizeof(Term));  // of a box
  static constexpr int kTermBoxes = 2;
  // Sums of 64 rows x 128 columns that a warpgroup sends to the other block (HeadTile::in_halves).
  static constexpr int kHalfBytes = 64 * 128 * 4;
  static_assert(kHalfBytes <= 3 * kPanelBytes);

  struct SharedStorage {
    alignas(1024) T stages[kStages][3 * kPanelElements];
    alignas(1024) char boxes[kConsumers][kBoxes][kBoxBytes];
    BoxJob jobs[kConsumers][kBoxes];
    Tile tiles[kTiles];
    int num_terms[kTiles];  // old terms that the tile reads
    Barrier tile_full[kTiles], tile_empty[kTiles];
    Barrier full[kStages], empty[kStages];
    Barrier box_full[kConsumers][kBoxes], box_empty[kConsumers][kBoxes];
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
  using Ring = RingPosition<kStages>;
  using TileRing = RingPosition<kTiles>;
  using BoxRing = RingPosition<kBoxes>;

  // Heads of this block's half of a GemmTile of kHeads, after those of the block before.
  __device__ static int heads_of(const GemmTile& tile, int rank) {
    return (tile.num_live + 1 - rank) / 2;
  }
  __device__ static bool is_end(const GemmTile& tile) { return tile.num_rows < 0; }
  __device__ static bool is_end(const HeadTile& tile) { return tile.head < 0; }
};

// tile.rows[i] without an array in local memory.
__device__ inline RowRange rows_of(const HeadTile& tile, int i) {
  const RowRange low = i == 0 ? tile.rows[0] : tile.rows[1];
  const RowRange high = i == 2 ? tile.rows[2] : tile.rows[3];
  return i < 2 ? low : high;
}

// Takes the next tile; one arrival a caller, who may be a warp.
template <typename Kernel>
__device__ inline typename Kernel::Tile take_tile(typename Kernel::SharedStorage& shared,
                                                  typename Kernel::TileRing& ring, int& num_terms) {
  shared.tile_full[ring.slot].wait(ring.phase);
  const typename Kernel::Tile tile = shared.tiles[ring.slot];
  num_terms = shared.num_terms[ring.slot];
  return tile;
}

}  // namespace flashomni::cuda
