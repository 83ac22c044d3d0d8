// gemm_sm90.cuh -- projections over live work with TMA loads and WGMMA (Hopper).
//
// A cluster of two thread blocks shares what both read: A of one row block, for two column tiles of
// 256, or W of one head, for four row blocks (HeadTile); reading both operands for every tile would
// exceed what L2 delivers. In each block:
//   warpgroup 0     warp 0 loads slices of 64 summed columns, kStages deep; warps 1-2 store;
//                   warp 3 schedules
//   warpgroups 1-2  consume: 64 x 256 each, or 128 x 128 (HeadTile), 128 accumulators a thread;
//                   then the epilogue
//
// The kinds differ in which slices a tile sums over (GemmLoader) and in what becomes of the
// accumulators (GemmEpilogue). Measurements: docs/kernels/gemm_sm90.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/kernels/gemm_sm90_epilogue.cuh"
#include "backend/cuda/kernels/gemm_sm90_load.cuh"

namespace flashomni::cuda {

// One thread of a consumer warpgroup.
template <typename Kernel>
struct GemmConsumer {
  using T = typename Kernel::Element;
  static constexpr GemmKind kKind = Kernel::kKind;
  static constexpr int kHeadDim = Kernel::kHeadDim;
  static constexpr int kTileK = Kernel::kTileK, kPanelElements = Kernel::kPanelElements;
  static constexpr int kAccumulators = Kernel::kTileN / 2;

  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int rank;       // of the block in its cluster
  int warpgroup;  // 0 or 1
  int thread;     // 0 .. 127
  GemmEpilogue<Kernel> epilogue{params, shared, warpgroup, thread};
  typename Kernel::Ring ring{};
  typename Kernel::TileRing tile_ring{};

  // All blocks of the cluster write to a stage, so all wait for the warps that read it anywhere.
  __device__ void release_stage(int slot) {
    if (thread % 32 < Kernel::kCluster) shared.empty[slot].arrive_at(thread % 32);
  }

  // The products of the slice in `stage`: 64 rows and the first kWidth columns, or, of HeadTile,
  // 128 rows and 128 columns.
  template <int kWidth>
  __device__ void issue_slice(float (&d)[kAccumulators], const T* stage) const {
    if constexpr (Kernel::kByHead) {
      auto& upper = reinterpret_cast<float(&)[64]>(d[0]);
      auto& lower = reinterpret_cast<float(&)[64]>(d[64]);
      const T* rows = stage + (1 + warpgroup) * kPanelElements;
      const std::uint64_t w = wgmma_descriptor(stage), a = wgmma_descriptor(rows);
      const std::uint64_t below = wgmma_descriptor(rows + 64 * kTileK);
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        Wgmma<T, 128>::ss(upper, a + (step * 32 >> 4), w + (step * 32 >> 4), 1);
        Wgmma<T, 128>::ss(lower, below + (step * 32 >> 4), w + (step * 32 >> 4), 1);
      }
    } else {
      const std::uint64_t a = wgmma_descriptor(stage + warpgroup * 64 * kTileK);
      const std::uint64_t w = wgmma_descriptor(stage + kPanelElements);
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        Wgmma<T, kWidth>::ss(d, a + (step * 32 >> 4), w + (step * 32 >> 4), 1);
      }
    }
  }

  // d += A W^T over `slices` more slices.
  template <int kWidth>
  __device__ void multiply(float (&d)[kAccumulators], int slices) {
    int running_slot = -1;  // stage of the products before the newest
    wgmma_wait<0>();  // nothing is running; keeps ptxas from moving accumulator code past here
    wgmma_hold(d);
    for (int slice = 0; slice < slices; ++slice) {
      shared.full[ring.slot].wait(ring.phase);
      wgmma_fence();
      issue_slice<kWidth>(d, shared.stages[ring.slot]);
      wgmma_commit();
      wgmma_wait<1>();
      if (running_slot >= 0) release_stage(running_slot);
      running_slot = ring.slot;
      ring.advance();
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    if (running_slot >= 0) release_stage(running_slot);
  }
  __device__ void multiply(float (&d)[kAccumulators], int width, int slices) {
    if (width > 128) {
      multiply<256>(d, slices);
    } else {
      multiply<128>(d, slices);
    }
  }
  // Keeps step with the other warpgroup, whose slices they are.
  __device__ void skip(int slices) {
    for (int slice = 0; slice < slices; ++slice) {
      shared.full[ring.slot].wait(ring.phase);
      __syncwarp();
      release_stage(ring.slot);
      ring.advance();
    }
  }

  __device__ static void clear(float (&d)[kAccumulators]) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) d[i] = 0;
  }

  // --- output projection ---

  static constexpr int kGroupColumns = Kernel::kTermBoxes * Kernel::kTermColumns;

  __device__ void add_forecast(float (&d)[kAccumulators], const GemmTile& tile, int num_terms) {
#pragma unroll
    for (int column = 0; column < Kernel::kTileN; column += kGroupColumns) {
      if (column >= tile.width) break;
      for (int term = 0; term < num_terms; ++term) {
        shared.full[ring.slot].wait(ring.phase);
        epilogue.add_term(d + column / 2, reinterpret_cast<char*>(shared.stages[ring.slot]),
                          params.coefficients[term]);
        __syncwarp();
        release_stage(ring.slot);
        ring.advance();
      }
    }
  }

  // Writes the sum over cached heads and its differences; num_terms old terms wait in the stages.
  __device__ void write_terms(const float (&d)[kAccumulators], const GemmTile& tile,
                              int num_terms) {
#pragma unroll
    for (int column = 0; column < Kernel::kTileN; column += kGroupColumns) {
      if (column >= tile.width) break;
      char* stages[2] = {};  // of the old terms
      auto last = ring;
#pragma unroll
      for (int term = 0; term < 2; ++term) {
        if (term >= num_terms) break;
        shared.full[last.slot].wait(last.phase);
        stages[term] = reinterpret_cast<char*>(shared.stages[last.slot]);
        last.advance();
      }
#pragma unroll
      for (int box = 0; box < Kernel::kTermBoxes; ++box) {
        const int at = column + box * Kernel::kTermColumns;
        epilogue.put_terms(d + at / 2, stages, box, num_terms,
                           epilogue.job_of(tile, tile.column + at));
      }
      __syncwarp();
      for (int term = 0; term < num_terms; ++term) {
        release_stage(ring.slot);
        ring.advance();
      }
    }
  }

  __device__ void project(float (&d)[kAccumulators], const GemmTile& tile, int num_terms) {
    const int live = tile.num_live * params.slices_per_head + params.mlp_slices;
    clear(d);
    if constexpr (kKind == GemmKind::kDispatch) {
      multiply(d, tile.width, live);
      add_forecast(d, tile, num_terms);
    } else {
      // Apart from start to end: where the two meet in between, ptxas serialises the products.
      if (tile.width > 128) {
        update<256>(d, tile, num_terms, live);
      } else {
        update<128>(d, tile, num_terms, live);
      }
      return;
    }
    epilogue.finish_tile(d, tile);
  }
  template <int kWidth>
  __device__ __forceinline__ void update(float (&d)[kAccumulators], const GemmTile& tile,
                                         int num_terms, int live_slices) {
    multiply<kWidth>(d, tile.num_cached * params.slices_per_head);
    if (params.projections[0].bias) epilogue.add_bias(d, tile);
    if (params.order >= 0) write_terms(d, tile, num_terms);
    multiply<kWidth>(d, live_slices);
    epilogue.finish_tile(d, tile);
  }

  __device__ void linear(float (&d)[kAccumulators], const GemmTile& tile) {
    clear(d);
    multiply(d, tile.width, params.slices);
    if (params.projections[0].bias) epilogue.add_bias(d, tile);
    epilogue.activate(d);
    if (params.out_is_f32) {
      epilogue.store_f32(d, tile);
    } else {
      epilogue.put_tile(d, tile);
    }
  }

  // --- GEMM-Q ---

  __device__ void project_heads(float (&d)[kAccumulators], const GemmTile& tile) {
    const int heads = Kernel::heads_of(tile, rank);
    const int first = tile.first_head + (rank == 1 ? Kernel::heads_of(tile, 0) : 0);
    clear(d);
    // Without a head this block multiplies what its stages hold, to keep step with the other.
    multiply(d, heads * kHeadDim, params.slices);
    finish_heads<0>(d, tile, first, heads);
  }
  template <int kIndex>
  __device__ void finish_heads(float (&d)[kAccumulators], const GemmTile& tile, int first,
                               int heads) {
    if (kIndex >= heads) return;
    epilogue.finish_head(d + kIndex * kHeadDim / 2,
                         params.projections[tile.projection].heads[first + kIndex],
                         epilogue.job_of(tile, 0, tile.projection));
    if constexpr ((kIndex + 1) * kHeadDim < Kernel::kTileN) {
      finish_heads<kIndex + 1>(d, tile, first, heads);
    }
  }
  __device__ void project_head(float (&d)[kAccumulators], const HeadTile& tile) {
    const RowRange rows = rows_of(tile, 2 * rank + warpgroup);
    const bool halves = tile.in_halves;
    const int slices = halves ? (params.slices + 1) / 2 : params.slices;
    if (rows.num_rows == 0) return skip(slices + (halves ? 2 : 0));
    clear(d);
    multiply<128>(d, slices);
    if (halves) exchange_halves(d);
    finish_rows(d, tile, rows, halves ? rank * kBoxRows : 0);
    if (!halves) finish_rows(d + 64, tile, rows, kBoxRows);
  }
  // The 64 rows of a row block from `first` on.
  __device__ __forceinline__ void finish_rows(float* d, const HeadTile& tile, const RowRange& rows,
                                              int first) {
    const int count = min(rows.num_rows - first, kBoxRows);
    if (count <= 0) return;
    epilogue.finish_head(d, tile.head, {tile.projection, count, rows.batch, rows.row + first, 0});
  }
  // Both blocks hold 128 rows of sums over half of in_features. Sends the other block the rows that
  // it finishes, 64 (1 - rank) on, and adds what it sends to those from 64 rank on, in d[0 .. 64).
  __device__ __forceinline__ void exchange_halves(float (&d)[kAccumulators]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const float upper = d[i], lower = d[64 + i];
      d[i] = rank == 0 ? upper : lower;
      d[64 + i] = rank == 0 ? lower : upper;
    }
    auto own = ring;  // stages come in pairs, one a warpgroup
    if (warpgroup == 1) own.advance();
    // All warps of both blocks have left the stage.
    shared.empty[own.slot].wait(own.phase ^ 1);
    auto* own_stage = reinterpret_cast<float4*>(shared.stages[own.slot]);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float* part = d + 64 + 4 * i;
      store_at(1 - rank, own_stage + i * 128 + thread, {part[0], part[1], part[2], part[3]},
               shared.full[own.slot]);
    }
    for (int stage = 0; stage < 2; ++stage) {
      shared.full[ring.slot].wait(ring.phase);
      if (stage == warpgroup) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          const float4 part = own_stage[i * 128 + thread];
          d[4 * i] += part.x;
          d[4 * i + 1] += part.y;
          d[4 * i + 2] += part.z;
          d[4 * i + 3] += part.w;
        }
        fence_shared_for_tma();  // before TMA writes over what generic stores wrote
      }
      __syncwarp();
      release_stage(ring.slot);
      ring.advance();
    }
  }

  __device__ void run() {
    float d[kAccumulators];
    while (true) {
      int num_terms;
      const auto tile = take_tile<Kernel>(shared, tile_ring, num_terms);
      __syncwarp();
      if (thread % 32 == 0) shared.tile_empty[tile_ring.slot].arrive();
      tile_ring.advance();
      if (Kernel::is_end(tile)) break;
      if constexpr (Kernel::kByHead) {
        project_head(d, tile);
      } else {
        if constexpr (kKind == GemmKind::kHeads) project_heads(d, tile);
        if constexpr (Kernel::kProjectsO) project(d, tile, num_terms);
        if constexpr (kKind == GemmKind::kLinear) linear(d, tile);
      }
    }
    epilogue.finish();
  }
};

template <typename Kernel>
__device__ inline void init_barriers(typename Kernel::SharedStorage& shared) {
  constexpr int kConsumerWarps = 4 * Kernel::kConsumers;
  for (int i = 0; i < Kernel::kTiles; ++i) {
    shared.tile_full[i].init(1);
    shared.tile_empty[i].init(kConsumerWarps + 1);
  }
  for (int i = 0; i < Kernel::kStages; ++i) {
    shared.full[i].init(1);
    shared.empty[i].init(Kernel::kCluster * kConsumerWarps);
  }
  for (int i = 0; i < Kernel::kConsumers * Kernel::kBoxes; ++i) {
    shared.box_full[i / Kernel::kBoxes][i % Kernel::kBoxes].init(4);
    shared.box_empty[i / Kernel::kBoxes][i % Kernel::kBoxes].init(1);
  }
  fence_barrier_init();
}

// Of the maps that the first tile needs. By one thread.
template <typename Kernel>
__device__ inline void prefetch_tensor_maps(const GemmParams& params) {
  prefetch_tensor_map(&params.a_map);
  prefetch_tensor_map(&params.projections[0].w_map);
  prefetch_tensor_map(&params.projections[0].out_map);
  if (Kernel::kProjectsO && params.order >= 0) prefetch_tensor_map(&params.term_maps[0]);
}

template <typename Kernel>
__global__ void __cluster_dims__(Kernel::kCluster, 1, 1) __launch_bounds__(Kernel::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ GemmParams params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Kernel::SharedStorage*>(shared_bytes);
  const int rank = cluster_rank();
  if (threadIdx.x == 0) init_barriers<Kernel>(shared);
  if (threadIdx.x == 32) prefetch_tensor_maps<Kernel>(params);
  sync_cluster();
  release_next_kernel();
  await_previous_kernel();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    release_registers<Kernel::kProducerRegisters>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) GemmLoader<Kernel>{params, shared, rank}.run();
    if (warp == 1 || warp == 2) GemmStorer<Kernel>{params, shared, warp - 1, lane}.run();
    if (warp == 3) GemmScheduler<Kernel>{params, shared, rank, lane}.run();
  } else {
    claim_registers<Kernel::kConsumerRegisters>();
    const int thread = threadIdx.x % 128;
    GemmConsumer<Kernel>{params, shared, rank, warpgroup - 1, thread}.run();
  }
  __syncwarp();
  sync_cluster();  // neither block may leave while the other writes to it
}

}  // namespace flashomni::cuda
