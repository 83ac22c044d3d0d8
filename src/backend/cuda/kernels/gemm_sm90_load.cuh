// gemm_sm90_load.cuh -- the producing warps of gemm_sm90.cuh: one schedules tiles, one thread loads
// the stages, and a warp for each consumer warpgroup stores what that has finished.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/kernels/gemm_sm90_config.cuh"

namespace flashomni::cuda {

// One warp. Looks tiles up ahead of everyone, because that is a chain of reads of global memory.
template <typename Kernel>
struct GemmScheduler {
  using Tile = typename Kernel::Tile;
  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int lane;
  typename Kernel::TileRing ring{};

  // Tiles of kLinear are found by arithmetic. Both blocks of a cluster walk the same tiles.
  __device__ Tile tile_at(int index) const {
    if constexpr (Kernel::kKind == GemmKind::kLinear) {
      const int narrow = index - params.wide_tiles;
      const int wide = narrow < 0 ? index : params.wide_tiles + narrow / 2;
      const int row = wide / params.column_tiles * 128;
      int column = wide % params.column_tiles * 2 * Kernel::kTileN;
      if (narrow > 0 && narrow % 2 == 1) column += Kernel::kTileN;
      const int width = narrow < 0 ? Kernel::kTileN : Kernel::kTileN / 2;
      return {0, row, min(params.rows - row, 128), column, width, 0, 0, 0, 0, 0};
    } else {
      return static_cast<const Tile*>(params.tiles)[index];
    }
  }
  // Old terms that the tile reads; the rest of its row block's order table is out of date.
  __device__ int count_terms(const Tile& tile) const {
    if constexpr (Kernel::kProjectsO) {
      if (params.order < 0) return 0;
      const int valid = params.valid_order[tile.batch * params.num_q_blocks + tile.q_block];
      if (Kernel::kKind == GemmKind::kDispatch) return min(valid, params.order) + 1;
      return tile.same_heads ? min(valid + 1, params.order) : 0;
    }
    return 0;
  }
  __device__ void publish(const Tile& tile, int num_terms) {
    shared.tile_empty[ring.slot].wait(ring.phase ^ 1);
    if (lane == 0) {
      shared.tiles[ring.slot] = tile;
      shared.num_terms[ring.slot] = num_terms;
      shared.tile_full[ring.slot].arrive();
    }
    __syncwarp();
    ring.advance();
  }
  __device__ void run() {
    for (int index = blockIdx.x / 2; index < params.num_tiles; index += gridDim.x / 2) {
      const Tile tile = tile_at(index);
      publish(tile, count_terms(tile));
    }
    Tile end{};
    if constexpr (Kernel::kByHead) {
      end.head = -1;
    } else {
      end.num_rows = -1;
    }
    publish(end, 0);
  }
};

// One thread.
template <typename Kernel>
struct GemmLoader {
  using T = typename Kernel::Element;
  static constexpr GemmKind kKind = Kernel::kKind;
  static constexpr int kTileK = Kernel::kTileK, kPanelElements = Kernel::kPanelElements;
  static constexpr int kPanelBytes = Kernel::kPanelBytes;

  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int rank;
  typename Kernel::Ring ring{};
  typename Kernel::TileRing tile_ring{};

  // The free stage, of which `bytes` will be filled.
  __device__ T* begin_stage(int bytes) {
    shared.empty[ring.slot].wait(ring.phase ^ 1);
    shared.full[ring.slot].arrive_expecting(bytes);
    return shared.stages[ring.slot];
  }
  __device__ Barrier& full() { return shared.full[ring.slot]; }

  // This block's half of the tile's rows, to both blocks.
  __device__ void load_a(T* to, const CUtensorMap& map, const GemmTile& tile, int column) {
    tma_load_to_both(to + rank * 64 * kTileK, &map, full(), column, tile.row + rank * 64,
                     tile.batch);
  }

  // A of `map` at `a_column`, W at `w_column` for this block's output columns.
  __device__ void load_slice(const GemmTile& tile, const CUtensorMap& map, int a_column,
                             int w_column) {
    T* stage = begin_stage(kPanelBytes + tile.width * kTileK * 2);
    const int row = tile.column + rank * tile.width;
    constexpr auto kKeep = KeepInL2::kLong;  // while activations, terms and outputs stream past
    tma_load(stage + kPanelElements, &params.w_map, full(), w_column, row, kKeep);
    if (tile.width > 128) {
      tma_load(stage + 2 * kPanelElements, &params.w_map, full(), w_column, row + 128, kKeep);
    }
    load_a(stage, map, tile, a_column);
    ring.advance();
  }
  __device__ void load_heads(const GemmTile& tile, int first, int count) {
    for (int i = 0; i < count; ++i) {
      const int head = params.heads[first + i];
      for (int slice = 0; slice < params.slices_per_head; ++slice) {
        const int column = (head * params.slices_per_head + slice) * kTileK;
        load_slice(tile, params.a_map, column, column);
      }
    }
  }
  __device__ void load_mlp(const GemmTile& tile) {
    for (int slice = 0; slice < params.mlp_slices; ++slice) {
      load_slice(tile, params.mlp_map, slice * kTileK, params.mlp_column + slice * kTileK);
    }
  }
  // Terms 0 .. count: both warpgroups' rows, kTermBoxes boxes of columns at a time.
  __device__ void load_terms(const GemmTile& tile, int count) {
    constexpr int kBoxes = Kernel::kTermBoxes, kColumns = Kernel::kTermColumns;
    for (int column = 0; column < tile.width; column += kBoxes * kColumns) {
      for (int term = 0; term < count; ++term) {
        char* stage = reinterpret_cast<char*>(begin_stage(2 * kBoxes * kBoxBytes));
        for (int box = 0; box < 2 * kBoxes; ++box) {
          tma_load(stage + box * kBoxBytes, &params.term_maps[term], full(),
                   tile.column + rank * tile.width + column + box % kBoxes * kColumns,
                   tile.row + box / kBoxes * kBoxRows, tile.batch, KeepInL2::kShort);
        }
        ring.advance();
      }
    }
  }

  __device__ void load(const HeadTile& tile, int) {
    const RowRange rows[2] = {rows_of(tile, 2 * rank), rows_of(tile, 2 * rank + 1)};
    const int bytes = kPanelBytes * (1 + (rows[0].num_rows > 0) + (rows[1].num_rows > 0));
    for (int slice = 0; slice < params.slices; ++slice) {
      T* stage = begin_stage(bytes);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (rows[i].num_rows == 0) continue;
        tma_load(stage + (1 + i) * kPanelElements, &params.a_map, full(), slice * kTileK,
                 rows[i].row, rows[i].batch);
      }
      tma_load_to_both(stage + rank * 64 * kTileK, &params.w_map, full(), slice * kTileK,
                       tile.head * Kernel::kHeadDim + rank * 64);
      ring.advance();
    }
  }
  __device__ void load(const GemmTile& tile, int num_terms) {
    if constexpr (kKind == GemmKind::kHeads) {
      load_live_heads(tile);
    } else if constexpr (kKind == GemmKind::kLinear) {
      for (int slice = 0; slice < params.slices; ++slice) {
        load_slice(tile, params.a_map, slice * kTileK, slice * kTileK);
      }
    } else {
      const int first_live = tile.first_head + tile.num_cached;
      if constexpr (kKind == GemmKind::kUpdate) {
        load_heads(tile, tile.first_head, tile.num_cached);
        load_terms(tile, num_terms);
      }
      load_heads(tile, first_live, tile.num_live);
      load_mlp(tile);
      if constexpr (kKind == GemmKind::kDispatch) load_terms(tile, num_terms);
    }
  }
  // The weights of this block's live heads, of kHeadDim rows each.
  __device__ void load_live_heads(const GemmTile& tile) {
    const int heads = Kernel::heads_of(tile, rank);
    const int first = tile.first_head + (rank == 1 ? Kernel::heads_of(tile, 0) : 0);
    constexpr int kHeadElements = Kernel::kHeadDim * kTileK;
    for (int slice = 0; slice < params.slices; ++slice) {
      T* stage = begin_stage(kPanelBytes + heads * kHeadElements * 2);
      for (int i = 0; i < heads; ++i) {
        tma_load(stage + kPanelElements + i * kHeadElements, &params.w_map, full(), slice * kTileK,
                 params.heads[first + i] * Kernel::kHeadDim);
      }
      load_a(stage, params.a_map, tile, slice * kTileK);
      ring.advance();
    }
  }

  __device__ void run() {
    while (true) {
      int num_terms;
      const auto tile = take_tile<Kernel>(shared, tile_ring, num_terms);
      shared.tile_empty[tile_ring.slot].arrive();
      tile_ring.advance();
      if (Kernel::is_end(tile)) return;
      load(tile, num_terms);
    }
  }
};

// One warp: writes the boxes of a consumer warpgroup out.
template <typename Kernel>
struct GemmStorer {
  using T = typename Kernel::Element;
  using Term = typename Kernel::Term;
  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int warpgroup, lane;
  typename Kernel::BoxRing ring{};

  __device__ const CUtensorMap* map_of(int target) const {
    return target == 0 ? &params.out_map : &params.term_maps[target - 1];
  }
  // Row by row, where the box ends before its 64th row: other rows are somebody else's.
  template <typename Element>
  __device__ void copy_rows(const BoxJob& job, const char* box, Element* first_row,
                            std::int64_t row_stride) const {
    constexpr int kChunk = 16 / sizeof(Element);
    for (int i = lane; i < job.num_rows * 8; i += 32) {
      const int row = i / 8, chunk = i % 8, column = job.column + chunk * kChunk;
      if (column >= params.out_features) continue;
      *reinterpret_cast<uint4*>(first_row + row * row_stride + column) =
          *reinterpret_cast<const uint4*>(box + row * 128 + ((chunk ^ (row & 7)) * 16));
    }
  }
  __device__ void store(const BoxJob& job, const char* box) const {
    if (job.num_rows == kBoxRows) {
      if (lane == 0) {
        tma_store(map_of(job.target), box, job.column, job.row, job.batch);
        tma_wait_for_reads();
      }
    } else if (job.target == 0) {
      copy_rows(job, box,
                static_cast<T*>(params.out) + job.batch * params.out_batch_stride +
                    job.row * params.out_row_stride,
                params.out_row_stride);
    } else {
      copy_rows(job, box,
                static_cast<Term*>(params.terms[job.target - 1]) +
                    job.batch * params.term_batch_stride +
                    static_cast<std::int64_t>(job.row) * params.out_features,
                params.out_features);
    }
  }
  __device__ void run() {
    while (true) {
      shared.box_full[warpgroup][ring.slot].wait(ring.phase);
      const BoxJob job = shared.jobs[warpgroup][ring.slot];
      if (job.num_rows < 0) break;
      store(job, shared.boxes[warpgroup][ring.slot]);
      __syncwarp();
      if (lane == 0) shared.box_empty[warpgroup][ring.slot].arrive();
      ring.advance();
    }
    if (lane == 0) tma_wait_for_stores();
  }
};

}  // namespace flashomni::cuda
