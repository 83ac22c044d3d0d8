// gemm_sm90.cuh -- projections over live work with TMA loads and WGMMA (Hopper).
//
// A cluster of two thread blocks takes one row block and two column tiles: each loads half of A to
// both, and W for itself, since reading A and W for every tile of 128 x 256 would exceed what L2
// delivers. In each block:
//   warpgroup 0     one thread loads slices of 64 summed columns, A 128 x 64 and W 256 x 64,
//                   kStages deep; kDispatch: one warp fetches the tile's bias cache into L2
//   warpgroups 1-2  consume: 64 x 256 each, 128 accumulators a thread; then their epilogue
//
// The kinds differ in which slices a tile sums over (GemmLoader) and in what becomes of the
// accumulators (GemmConsumer). Measurements: docs/kernels/gemm_sm90.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/fragment.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/kernels/gemm_sm90_load.cuh"

namespace flashomni::cuda {

// One thread of a consumer warpgroup.
template <typename Kernel>
struct GemmConsumer {
  using T = typename Kernel::Element;
  static constexpr GemmKind kKind = Kernel::kKind;
  static constexpr int kHeadDim = Kernel::kHeadDim;
  static constexpr int kTileN = Kernel::kTileN, kTileK = Kernel::kTileK;
  static constexpr int kAccumulators = kTileN / 2;

  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int rank;       // of the block in its cluster
  int warpgroup;  // 0 or 1
  int thread;     // 0 .. 127
  typename Kernel::Ring ring{};
  typename Kernel::TileRing tile_ring{};

  // Both blocks write to a stage, so both wait for the 8 + 8 warps that read it.
  __device__ void release_stage(int slot) {
    if (thread % 32 < 2) shared.empty[slot].arrive_at(thread % 32);
  }
  __device__ int row_in_tile() const {
    return warpgroup * 64 + (thread / 32) * 16 + (thread % 32) / 4;
  }

  // d += A W^T over `slices` more slices; the first kWidth columns of the tile.
  template <int kWidth>
  __device__ void multiply(float (&d)[kAccumulators], int slices) {
    int running_slot = -1;  // stage of the products before the newest
    wgmma_wait<0>();  // nothing is running; keeps ptxas from moving accumulator code past here
    wgmma_hold(d);
    for (int slice = 0; slice < slices; ++slice) {
      shared.full[ring.slot].wait(ring.phase);
      const std::uint64_t a = wgmma_descriptor(shared.a[ring.slot] + warpgroup * 64 * kTileK);
      const std::uint64_t w = wgmma_descriptor(shared.w[ring.slot]);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        Wgmma<T, kWidth>::ss(d, a + (step * 32 >> 4), w + (step * 32 >> 4), 1);
      }
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

  __device__ static void clear(float (&d)[kAccumulators]) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) d[i] = 0;
  }

  // Calls f(d + i, row, column) for every pair of neighbouring columns that this thread holds
  // and the output has.
  template <typename F>
  __device__ void for_each_pair(float (&d)[kAccumulators], const GemmTile& tile, F&& f) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_in_tile() + 8 * half;
      if (row >= tile.num_rows) continue;
#pragma unroll
      for (int j = 0; j < kTileN / 8; ++j) {
        const int column = tile.column + 8 * j + 2 * (thread % 4);
        if (column >= params.out_features) continue;
        f(d + 4 * j + 2 * half, tile.row + row, column);
      }
    }
  }

  __device__ void add_bias(float (&d)[kAccumulators], const GemmTile& tile) const {
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j) {
      const int column = tile.column + 8 * j + 2 * (thread % 4);
      const float2 bias = column < params.out_features ? bias_at(column) : float2{0, 0};
      d[4 * j] += bias.x;
      d[4 * j + 1] += bias.y;
      d[4 * j + 2] += bias.x;
      d[4 * j + 3] += bias.y;
    }
  }
  __device__ float2 bias_at(int column) const {
    return params.bias ? float2{params.bias[column], params.bias[column + 1]} : float2{0, 0};
  }
  // Writes kCount accumulators from kFirst, 2 * kCount columns from `column` on, as 16-byte chunks.
  template <int kFirst, int kCount>
  __device__ void store(const float (&d)[kAccumulators], const GemmTile& tile, int column) const {
    const int lane = thread % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_in_tile() + 8 * half;
      T* out = static_cast<T*>(params.out) + tile.batch * params.out_batch_stride +
               (tile.row + row) * params.out_row_stride + column;
#pragma unroll
      for (int i = 0; i < kCount / 16; ++i) {
        std::uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = kFirst + 4 * (4 * i + j) + 2 * half;
          words[j] = pack<T>(d[at], d[at + 1]);
        }
        transpose_quad(words, lane);
        const int offset = 32 * i + 8 * lane;
        if (row < tile.num_rows && column + offset < params.out_features) {
          *reinterpret_cast<uint4*>(out + offset) = {words[0], words[1], words[2], words[3]};
        }
      }
    }
  }
  // --- output projection ---

  // Of the last update.
  __device__ int valid_order(const GemmTile& tile) const {
    return params.valid_order[tile.batch * params.num_q_blocks + tile.q_block];
  }

  // Calls f(j, at) for kBatch groups of columns from kFirst with the offset of this thread's pair
  // in a term, or -1 where there is none. Loads of a batch are issued together: the terms come from
  // L2, and one at a time would cost its latency 64 times.
  static constexpr int kBatch = 4;
  template <int kFirst, typename F>
  __device__ void for_batch(const GemmTile& tile, int half, F&& f) const {
    const int row = row_in_tile() + 8 * half;
    const std::int64_t row_at = tile.batch * params.term_batch_stride +
                                static_cast<std::int64_t>(tile.row + row) * params.out_features;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int column = tile.column + 8 * (kFirst + j) + 2 * (thread % 4);
      const bool valid = row < tile.num_rows && column < params.out_features;
      f(j, valid ? row_at + column : -1);
    }
  }
  template <int kFirst>
  __device__ void load_batch(const float* terms, const GemmTile& tile, int half,
                             float2 (&values)[kBatch]) const {
    for_batch<kFirst>(tile, half, [&](int j, std::int64_t at) {
      values[j] = at < 0 ? float2{0, 0} : __ldcg(reinterpret_cast<const float2*>(terms + at));
    });
  }

  // d += coefficient * term, column groups kFirst and up.
  template <int kFirst = 0>
  __device__ void add_term(float (&d)[kAccumulators], const GemmTile& tile, const float* terms,
                           float coefficient) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 values[kBatch];
      load_batch<kFirst>(terms, tile, half, values);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        d[4 * (kFirst + j) + 2 * half] += coefficient * values[j].x;
        d[4 * (kFirst + j) + 2 * half + 1] += coefficient * values[j].y;
      }
    }
    if constexpr (kFirst + kBatch < kTileN / 8) {
      add_term<kFirst + kBatch>(d, tile, terms, coefficient);
    }
  }
  __device__ void add_forecast(float (&d)[kAccumulators], const GemmTile& tile) const {
    const int order = min(valid_order(tile), params.order);
    add_term(d, tile, params.terms[0], params.coefficients[0]);
    if (order >= 1) add_term(d, tile, params.terms[1], params.coefficients[1]);
    if (order >= 2) add_term(d, tile, params.terms[2], params.coefficients[2]);
  }

  // Terms 0 .. kOrder from the new term 0 in d, column groups kFirst and up.
  template <int kOrder, int kFirst = 0>
  __device__ void write_terms(const float (&d)[kAccumulators], const GemmTile& tile) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 before[kOrder + 1][kBatch];
#pragma unroll
      for (int o = 0; o < kOrder; ++o) load_batch<kFirst>(params.terms[o], tile, half, before[o]);
      for_batch<kFirst>(tile, half, [&](int j, std::int64_t at) {
        if (at < 0) return;
        float2 value = {d[4 * (kFirst + j) + 2 * half], d[4 * (kFirst + j) + 2 * half + 1]};
#pragma unroll
        for (int o = 0; o <= kOrder; ++o) {
          *reinterpret_cast<float2*>(params.terms[o] + at) = value;
          if (o == kOrder) break;
          value = {(value.x - before[o][j].x) * params.inverse_steps,
                   (value.y - before[o][j].y) * params.inverse_steps};
        }
      });
    }
    if constexpr (kFirst + kBatch < kTileN / 8) write_terms<kOrder, kFirst + kBatch>(d, tile);
  }

  // The sum over cached heads is complete: adds the bias, and writes it and its differences.
  __device__ void update_terms(float (&d)[kAccumulators], const GemmTile& tile) const {
    if (params.bias) add_bias(d, tile);
    if (params.order < 0) return;
    const int order = tile.same_heads ? min(valid_order(tile) + 1, params.order) : 0;
    if (order == 0) write_terms<0>(d, tile);
    if (order == 1) write_terms<1>(d, tile);
    if (order == 2) write_terms<2>(d, tile);
  }

  __device__ void project(float (&d)[kAccumulators], const GemmTile& tile) {
    const int slices = Kernel::count_slices(params, tile);
    clear(d);
    if constexpr (kKind == GemmKind::kDispatch) {
      multiply<kTileN>(d, slices);
      add_forecast(d, tile);
    } else {
      const int cached = tile.num_cached * params.slices_per_head;
      multiply<kTileN>(d, cached);
      update_terms(d, tile);
      multiply<kTileN>(d, slices - cached);
    }
    store<0, kAccumulators>(d, tile, tile.column);
  }

  // --- linear ---

  // gelu in its tanh form is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
  __device__ void activate(float (&d)[kAccumulators]) const {
    constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
    if (params.activation == 0) return;
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) {
      const float x = d[i];
      const float u = kTwoRootTwoOverPi * (x + 0.044715f * x * x * x);
      d[i] = __fdividef(x, 1 + __expf(params.activation == 1 ? -u : -x));
    }
  }

  __device__ void linear(float (&d)[kAccumulators], const GemmTile& tile) {
    clear(d);
    multiply<kTileN>(d, params.slices);
    if (params.bias) add_bias(d, tile);
    activate(d);
    if (params.out_is_f32) {
      for_each_pair(d, tile, [&](float* pair, int row, int column) {
        const std::int64_t at = tile.batch * params.out_batch_stride + row * params.out_row_stride;
        *reinterpret_cast<float2*>(static_cast<float*>(params.out) + at + column) = {pair[0],
                                                                                     pair[1]};
      });
    } else {
      store<0, kAccumulators>(d, tile, tile.column);
    }
  }

  // --- GEMM-Q ---

  // Bias, RMS norm over the head and rotary embedding of this block's head kIndex; stores it.
  template <int kIndex>
  __device__ void finish_head(float (&d)[kAccumulators], const GemmTile& tile, int first_head) {
    constexpr int kFirst = kIndex * kHeadDim / 2, kCount = kHeadDim / 2;
    const int first_column = params.heads[first_head + kIndex] * kHeadDim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        float* pair = d + kFirst + 4 * j + 2 * half;
        const float2 bias = bias_at(first_column + 8 * j + 2 * (thread % 4));
        pair[0] += bias.x;
        pair[1] += bias.y;
        squares += pair[0] * pair[0] + pair[1] * pair[1];
      }
      if (params.norm_weight) {
        const float norm = rsqrtf(quad_sum(squares) * (1.0f / kHeadDim) + params.eps);
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
          float* pair = d + kFirst + 4 * j + 2 * half;
          const int column = 8 * j + 2 * (thread % 4);
          pair[0] *= norm * params.norm_weight[column];
          pair[1] *= norm * params.norm_weight[column + 1];
        }
      }
      const int row = tile.row + min(row_in_tile() + 8 * half, tile.num_rows - 1);
      if (params.cos) {
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
          float* pair = d + kFirst + 4 * j + 2 * half;
          const std::int64_t at = row * params.rope_stride + 4 * j + thread % 4;
          const float c = params.cos[at], s = params.sin[at];
          const float x = pair[0], y = pair[1];
          pair[0] = x * c - y * s;
          pair[1] = x * s + y * c;
        }
      }
    }
    store<kFirst, kCount>(d, tile, first_column);
  }

  __device__ void project_heads(float (&d)[kAccumulators], const GemmTile& tile) {
    const int heads = Kernel::heads_of(tile, rank);
    const int first = tile.first_head + (rank == 1 ? Kernel::heads_of(tile, 0) : 0);
    clear(d);
    // Without a head this block multiplies what its stages hold, to keep step with the other.
    if (heads * kHeadDim > kTileN / 2) {
      multiply<kTileN>(d, params.slices);
    } else {
      multiply<kTileN / 2>(d, params.slices);
    }
    if (heads > 0) finish_head<0>(d, tile, first);
    if (heads > 1) finish_head<1>(d, tile, first);
    if constexpr (kHeadDim == 64) {
      if (heads > 2) finish_head<2>(d, tile, first);
      if (heads > 3) finish_head<3>(d, tile, first);
    }
  }

  __device__ void run() {
    float d[kAccumulators];
    while (true) {
      shared.tile_full[tile_ring.slot].wait(tile_ring.phase);
      GemmTile tile = shared.tile[tile_ring.slot];
      __syncwarp();
      if (thread % 32 == 0) shared.tile_empty[tile_ring.slot].arrive();
      tile_ring.advance();
      if (tile.num_rows < 0) return;
      tile.column += rank * kTileN;
      if constexpr (kKind == GemmKind::kHeads) {
        project_heads(d, tile);
      } else if constexpr (Kernel::kProjectsO) {
        project(d, tile);
      } else {
        linear(d, tile);
      }
    }
  }
};

template <typename Kernel>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(Kernel::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ GemmParams params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Kernel::SharedStorage*>(shared_bytes);
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Kernel::kConsumers;
    for (int i = 0; i < 2; ++i) {
      shared.tile_full[i].init(1);
      shared.tile_empty[i].init(kConsumerWarps + Kernel::kPrefetches);
    }
    for (int i = 0; i < Kernel::kStages; ++i) {
      shared.full[i].init(1);
      shared.empty[i].init(2 * kConsumerWarps);
    }
    fence_barrier_init();
  }
  sync_cluster();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    release_registers<Kernel::kProducerRegisters>();
    if (threadIdx.x == 0) GemmLoader<Kernel>{params, shared, rank}.run();
    if constexpr (Kernel::kPrefetches) {
      if (threadIdx.x / 32 == 1) prefetch_terms<Kernel>(params, shared, rank);
    }
  } else {
    claim_registers<Kernel::kConsumerRegisters>();
    const int thread = threadIdx.x % 128;
    GemmConsumer<Kernel>{params, shared, rank, warpgroup - 1, thread}.run();
  }
  __syncwarp();
  sync_cluster();  // neither block may leave while the other writes to it
}

}  // namespace flashomni::cuda
