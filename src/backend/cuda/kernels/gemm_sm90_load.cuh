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
  int rank, lane;
  typename Kernel::TileRing ring{};
  int counts[kMaxProjections] = {};  // kHeads: tiles of each projection

  // The tiles of all projections.
  __device__ int count_tiles() {
    if constexpr (Kernel::kKind != GemmKind::kHeads) return params.num_tiles;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kMaxProjections; ++i) {
      const ProjectionParams& projection = params.projections[i];
      counts[i] = projection.tiles_counted ? *projection.tiles_counted : projection.num_tiles;
      sum += counts[i];
    }
    return sum;
  }
  // This block's part of tile `index` of kLinear.
  __device__ GemmTile linear_tile(int index) const {
    const int narrow = index - params.wide_tiles;
    const int whole = narrow < 0 ? index : params.wide_tiles + narrow / 2;
    const int row_tile = whole / params.column_tiles, column_tile = whole % params.column_tiles;
    const int width = narrow < 0 ? Kernel::kTileN : Kernel::kTileN / 2;
    const int halves_before = narrow > 0 ? narrow % 2 : 0;
    int row = row_tile * 128, column = (2 * column_tile + halves_before) * Kernel::kTileN;
    if (params.shares_weight) {
      row = (2 * row_tile + rank) * 128;
      column = column_tile * Kernel::kTileN + halves_before * width;
    } else {
      column += rank * width;
    }
    const int num_rows = max(min(params.rows - row, 128), 0);
    return {0, row, num_rows, column, width, 0, 0, 0, 0, 0, 0};
  }
  // Both blocks of a cluster walk the same tiles; `column` becomes that of this block.
  __device__ Tile tile_at(int index) const {
    if constexpr (Kernel::kKind == GemmKind::kLinear) {
      return linear_tile(index);
    } else {
      int projection = 0;
      if constexpr (Kernel::kKind == GemmKind::kHeads) {
#pragma unroll
        for (int i = 0; i < kMaxProjections - 1; ++i) {
          if (projection < i || index < counts[i]) continue;
          index -= counts[i];
          projection = i + 1;
        }
      }
      Tile tile = static_cast<const Tile*>(params.projections[projection].tiles)[index];
      tile.projection = projection;
      if constexpr (Kernel::kProjectsO) tile.column += rank * tile.width;
      return tile;
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
    const int cluster = blockIdx.x / Kernel::kCluster, num_clusters = gridDim.x / Kernel::kCluster;
    const int num_tiles = count_tiles();
    // There and back: tiles get smaller, so in every second round the last cluster takes the first.
    bool back = false;
    for (int first = 0; first < num_tiles; first += num_clusters, back = !back) {
      const int index = first + (back ? num_clusters - 1 - cluster : cluster);
      if (index >= num_tiles) continue;
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

  // This block's share of the tile's rows, to all blocks.
  __device__ void load_a(T* to, const CUtensorMap& map, const GemmTile& tile, int column) {
    constexpr int kRows = 128 / Kernel::kCluster;
    tma_load_to_all<Kernel::kCluster>(to + rank * kRows * kTileK, &map, full(), column,
                                      tile.row + rank * kRows, tile.batch);
  }

  // A of `map` at `a_column`, W at `w_column` for this block's output columns.
  __device__ void load_slice(const GemmTile& tile, const CUtensorMap& map, int a_column,
                             int w_column) {
    T* stage = begin_stage(kPanelBytes + tile.width * kTileK * 2);
    constexpr auto kKeep = KeepInL2::kLong;  // while activations, terms and outputs stream past
    const CUtensorMap* w_map = &params.projections[0].w_map;
    tma_load(stage + kPanelElements, w_map, full(), w_column, tile.column, kKeep);
    if (tile.width > 128) {
      tma_load(stage + 2 * kPanelElements, w_map, full(), w_column, tile.column + 128, kKeep);
    }
    load_a(stage, map, tile, a_column);
    ring.advance();
  }
  // Where the blocks share W and not A.
  __device__ void load_shared_weight(const GemmTile& tile, int column) {
    T* stage = begin_stage(kPanelBytes + tile.width * kTileK * 2);
    tma_load(stage, &params.a_map, full(), column, tile.row, tile.batch);
    const int half = tile.width / 2;
    for (int row = rank * half; row < (rank + 1) * half; row += 64) {
      tma_load_to_all(stage + kPanelElements + row * kTileK, &params.projections[0].w_map, full(),
                      column, tile.column + row);
    }
    ring.advance();
  }
  __device__ void load_heads(const GemmTile& tile, int first, int count) {
    for (int i = 0; i < count; ++i) {
      const int head = params.projections[0].heads[first + i];
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
                   tile.column + column + box % kBoxes * kColumns,
                   tile.row + box / kBoxes * kBoxRows, tile.batch, KeepInL2::kShort);
        }
        ring.advance();
      }
    }
  }

  // W of a head, 64 rows a box.
  __device__ void load_head(T* to, const HeadTile& tile, int column) {
    const CUtensorMap* map = &params.projections[tile.projection].w_map;
    const int row = tile.head * Kernel::kHeadDim;
    constexpr int kBox = 64 * kTileK;
    if (tile.in_halves) {
      tma_load(to, map, full(), column, row);
      tma_load(to + kBox, map, full(), column, row + 64);
    } else {
      tma_load_to_all(to + rank * kBox, map, full(), column, row + rank * 64);
    }
  }
  __device__ void load(const HeadTile& tile, int) {
    const RowRange rows[2] = {rows_of(tile, 2 * rank), rows_of(tile, 2 * rank + 1)};
    const int bytes = kPanelBytes * (1 + (rows[0].num_rows > 0) + (rows[1].num_rows > 0));
    const int count = tile.in_halves ? (params.slices + 1) / 2 : params.slices;
    for (int slice = 0; slice < count; ++slice) {
      T* stage = begin_stage(bytes);
      const int column = (tile.in_halves ? rank * count + slice : slice) * kTileK;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (rows[i].num_rows == 0) continue;
        tma_load(stage + (1 + i) * kPanelElements, &params.a_map, full(), column, rows[i].row,
                 rows[i].batch);
      }
      load_head(stage, tile, column);
      ring.advance();
    }
    if (tile.in_halves) expect_halves(rows);
  }
  // Two stages that the other block's consumers fill (GemmConsumer::exchange_halves).
  __device__ void expect_halves(const RowRange (&rows)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin_stage(rows[i].num_rows > 0 ? Kernel::kHalfBytes : 0);
      ring.advance();
    }
  }
  __device__ void load(const GemmTile& tile, int num_terms) {
    if constexpr (kKind == GemmKind::kHeads) {
      load_live_heads(tile);
    } else if constexpr (kKind == GemmKind::kLinear) {
      for (int slice = 0; slice < params.slices; ++slice) {
        if (params.shares_weight) {
          load_shared_weight(tile, slice * kTileK);
        } else {
          load_slice(tile, params.a_map, slice * kTileK, slice * kTileK);
        }
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
    const ProjectionParams& projection = params.projections[tile.projection];
    for (int slice = 0; slice < params.slices; ++slice) {
      T* stage = begin_stage(kPanelBytes + heads * kHeadElements * 2);
      for (int i = 0; i < heads; ++i) {
        tma_load(stage + kPanelElements + i * kHeadElements, &projection.w_map, full(),
                 slice * kTileK, projection.heads[first + i] * Kernel::kHeadDim);
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

  __device__ const ProjectionParams& projection_of(const BoxJob& job) const {
    return params.projections[Kernel::kKind == GemmKind::kHeads ? job.target : 0];
  }
  __device__ bool is_term(const BoxJob& job) const { return Kernel::kProjectsO && job.target > 0; }
  __device__ bool adds(const BoxJob& job) const {
    return Kernel::kProjectsO && job.target == 0 && params.adds;
  }
  // Row by row, where the box ends before its 64th row: other rows are somebody else's.
  template <bool kAdds, typename Element>
  __device__ void copy_rows(const BoxJob& job, const char* box, Element* first_row,
                            std::int64_t row_stride) const {
    constexpr int kChunk = 16 / sizeof(Element);
    for (int i = lane; i < job.num_rows * 8; i += 32) {
      const int row = i / 8, chunk = i % 8, column = job.column + chunk * kChunk;
      if (column >= projection_of(job).out_features) continue;
      auto* to = reinterpret_cast<uint4*>(first_row + row * row_stride + column);
      uint4 value = *reinterpret_cast<const uint4*>(box + row * 128 + ((chunk ^ (row & 7)) * 16));
      if (kAdds) value = sum_of(*to, value);
      *to = value;
    }
  }
  __device__ static uint4 sum_of(uint4 a, uint4 b) {
    const auto sum = [](unsigned x, unsigned y) {
      return __float_as_uint(__uint_as_float(x) + __uint_as_float(y));
    };
    return {sum(a.x, b.x), sum(a.y, b.y), sum(a.z, b.z), sum(a.w, b.w)};
  }
  template <bool kAdds, typename Element>
  __device__ void copy_to_out(const BoxJob& job, const char* box) const {
    const ProjectionParams& to = projection_of(job);
    copy_rows<kAdds>(job, box,
                     static_cast<Element*>(to.out) + job.batch * to.out_batch_stride +
                         job.row * to.out_row_stride,
                     to.out_row_stride);
  }
  __device__ void copy_to_term(const BoxJob& job, const char* box) const {
    const std::int64_t row_stride = projection_of(job).out_features;
    copy_rows<false>(job, box,
                     static_cast<Term*>(params.terms[job.target - 1]) +
                         job.batch * params.term_batch_stride + job.row * row_stride,
                     row_stride);
  }
  // By one lane.
  __device__ void store_whole(const BoxJob& job, const char* box) const {
    if (adds(job)) {
      tma_add(&projection_of(job).out_map, box, job.column, job.row, job.batch);
    } else {
      const CUtensorMap* map =
          is_term(job) ? &params.term_maps[job.target - 1] : &projection_of(job).out_map;
      tma_store(map, box, job.column, job.row, job.batch);
    }
    tma_wait_for_reads();
  }
  __device__ void store(const BoxJob& job, const char* box) const {
    if (job.num_rows == kBoxRows) {
      if (lane == 0) store_whole(job, box);
    } else if (is_term(job)) {
      copy_to_term(job, box);
    } else if (adds(job)) {
      copy_to_out<true, float>(job, box);
    } else {
      copy_to_out<false, T>(job, box);
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
