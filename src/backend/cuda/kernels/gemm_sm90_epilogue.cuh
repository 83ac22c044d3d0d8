// gemm_sm90_epilogue.cuh -- what becomes of the accumulators of gemm_sm90.cuh, and how they leave.
//
// A consumer warpgroup holds four boxes of 64 rows x 64 columns, 32 accumulators a thread each (of
// HeadTile: two of columns, then the same 64 rows below). They leave through shared memory, so that
// one TMA store writes whole lines while the warpgroup goes on.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/fragment.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/kernels/gemm_sm90_config.cuh"

namespace flashomni::cuda {

// The swizzled address of the 16-byte chunk `chunk` of row `row` of a box.
__device__ inline char* box_chunk(char* box, int row, int chunk) {
  return box + row * 128 + ((chunk ^ (row & 7)) * 16);
}

// One thread of a consumer warpgroup and the boxes of it.
template <typename Kernel>
struct GemmEpilogue {
  using T = typename Kernel::Element;
  using Term = typename Kernel::Term;
  static constexpr int kAccumulators = Kernel::kTileN / 2;
  static constexpr int kBoxValues = 32;  // accumulators a thread of 64 rows x 64 columns

  const GemmParams& params;
  typename Kernel::SharedStorage& shared;
  int warpgroup, thread;
  typename Kernel::BoxRing ring{};

  __device__ int lane() const { return thread % 32; }
  __device__ int quad_lane() const { return thread % 4; }
  __device__ int row_in_box() const { return thread / 32 * 16 + lane() / 4; }
  // Of the row that this thread names to ldmatrix and stmatrix, and of the chunk beside it.
  __device__ int matrix_row() const { return thread / 32 * 16 + lane() % 16; }

  // What takes accumulators by pointer is inlined by force: they must stay in registers.

  // Calls f(pair) for the pairs of columns of d[kFirst ..) that this thread holds, with the column
  // of each from the first.
  template <int kCount, typename F>
  __device__ __forceinline__ static void for_pairs(float* d, int quad_lane, F&& f) {
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      f(d + 4 * j, 8 * j + 2 * quad_lane);
      f(d + 4 * j + 2, 8 * j + 2 * quad_lane);
    }
  }

  // --- boxes in shared memory ---

  // 64 columns of T.
  __device__ __forceinline__ void write_box(char* box, const float* d, T) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = pack<T>(d[8 * j + 2 * i], d[8 * j + 2 * i + 1]);
      store_matrices(words, box_chunk(box, matrix_row(), 2 * j + lane() / 16));
    }
  }
  __device__ __forceinline__ void read_box(char* box, float* d, T) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t words[4];
      load_matrices(words, box_chunk(box, matrix_row(), 2 * j + lane() / 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack<T>(words[i]);
        d[8 * j + 2 * i] = pair.x;
        d[8 * j + 2 * i + 1] = pair.y;
      }
    }
  }
  // 32 columns of f32.
  __device__ float2* pair_in_box(char* box, int j, int half) const {
    return reinterpret_cast<float2*>(
        box_chunk(box, row_in_box() + 8 * half, 2 * j + quad_lane() / 2) + quad_lane() % 2 * 8);
  }
  __device__ __forceinline__ void write_box(char* box, const float* d, float) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) *pair_in_box(box, i / 2, i % 2) = {d[2 * i], d[2 * i + 1]};
  }
  __device__ __forceinline__ void read_box(char* box, float* d, float) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 pair = *pair_in_box(box, i / 2, i % 2);
      d[2 * i] = pair.x;
      d[2 * i + 1] = pair.y;
    }
  }

  __device__ bool is_outside(int column) const {
    return Kernel::kKind != GemmKind::kHeads && column >= params.projections[0].out_features;
  }
  // Hands one box to the storing warp.
  template <typename Out>
  __device__ __forceinline__ void put_box(const float* d, const BoxJob& job) {
    if (job.num_rows <= 0 || is_outside(job.column)) return;
    shared.box_empty[warpgroup][ring.slot].wait(ring.phase ^ 1);
    write_box(shared.boxes[warpgroup][ring.slot], d, Out{});
    fence_shared_for_tma();
    hand_on(job);
  }
  __device__ void hand_on(const BoxJob& job) {
    if (thread == 0) shared.jobs[warpgroup][ring.slot] = job;
    __syncwarp();
    if (lane() == 0) shared.box_full[warpgroup][ring.slot].arrive();
    ring.advance();
  }
  // 64 columns: one box of 16-bit elements, two of f32.
  template <typename Out>
  __device__ __forceinline__ void put(const float* d, BoxJob job) {
    constexpr int kColumns = 128 / sizeof(Out);
#pragma unroll
    for (int i = 0; i < 64 / kColumns; ++i) {
      put_box<Out>(d + i * kColumns / 2, job);
      job.column += kColumns;
    }
  }
  __device__ void finish() {
    shared.box_empty[warpgroup][ring.slot].wait(ring.phase ^ 1);
    hand_on({0, -1, 0, 0, 0});
  }

  // This warpgroup's rows of a tile, from `column` on.
  __device__ BoxJob job_of(const GemmTile& tile, int column, int target = 0) const {
    const int rows = min(max(tile.num_rows - warpgroup * kBoxRows, 0), kBoxRows);
    return {target, rows, tile.batch, tile.row + warpgroup * kBoxRows, column};
  }
  template <typename Out = T>
  __device__ __forceinline__ void put_tile(const float (&d)[kAccumulators], const GemmTile& tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (64 * i < tile.width) put<Out>(d + kBoxValues * i, job_of(tile, tile.column + 64 * i));
    }
  }

  // --- output projection ---

  // d += coefficient * the boxes of this warpgroup in a stage.
  __device__ __forceinline__ void add_term(float* d, char* stage, float coefficient) const {
    constexpr int kValues = Kernel::kTermColumns / 2;
#pragma unroll
    for (int i = 0; i < Kernel::kTermBoxes; ++i) {
      float term[kValues];
      read_box(stage + (warpgroup * Kernel::kTermBoxes + i) * kBoxBytes, term, Term{});
#pragma unroll
      for (int j = 0; j < kValues; ++j) d[i * kValues + j] += coefficient * term[j];
    }
  }

  // The finished sums, to `out` or, gated, to the residual.
  __device__ __forceinline__ void finish_tile(float (&d)[kAccumulators], const GemmTile& tile) {
    if (!params.adds) return put_tile(d, tile);
    if (params.gate) {
      for_columns(d, tile, [&](float* pair, int column) {
        const auto gate = *reinterpret_cast<const float2*>(params.gate + column);
        pair[0] *= gate.x;
        pair[1] *= gate.y;
      });
    }
    put_tile<float>(d, tile);
  }

  // One box of columns of B_c and its differences, by the old terms in `stages`.
  __device__ __forceinline__ void put_terms(const float* d, char* const* stages, int box,
                                            int num_terms, BoxJob job) {
    constexpr int kValues = Kernel::kTermColumns / 2;
    float value[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] = d[i];
#pragma unroll
    for (int term = 0; term < 3; ++term) {
      job.target = 1 + term;
      put_box<Term>(value, job);
      if (term == 2 || term == num_terms) break;
      float before[kValues];
      read_box(stages[term] + (warpgroup * Kernel::kTermBoxes + box) * kBoxBytes, before, Term{});
#pragma unroll
      for (int i = 0; i < kValues; ++i) value[i] = (value[i] - before[i]) * params.inverse_steps;
    }
  }

  // --- linear ---

  // Calls f(pair, column) for the pairs of columns of a tile within the output.
  template <typename F>
  __device__ __forceinline__ void for_columns(float (&d)[kAccumulators], const GemmTile& tile,
                                              F&& f) const {
    for_pairs<kAccumulators>(d, quad_lane(), [&](float* pair, int offset) {
      const int column = tile.column + offset;
      if (offset < tile.width && !is_outside(column)) f(pair, column);
    });
  }
  __device__ void add_bias(float (&d)[kAccumulators], const GemmTile& tile) const {
    const float* bias = params.projections[0].bias;
    for_columns(d, tile, [&](float* pair, int column) {
      pair[0] += bias[column];
      pair[1] += bias[column + 1];
    });
  }

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

  // f32 outputs of linear layers go straight to memory.
  __device__ void store_f32(float (&d)[kAccumulators], const GemmTile& tile) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warpgroup * kBoxRows + row_in_box() + 8 * half;
      if (row >= tile.num_rows) continue;
      const ProjectionParams& to = params.projections[0];
      float* out = static_cast<float*>(to.out) + (tile.row + row) * to.out_row_stride;
#pragma unroll
      for (int j = 0; j < kAccumulators / 4; ++j) {
        const int offset = 8 * j + 2 * quad_lane(), column = tile.column + offset;
        if (offset >= tile.width || is_outside(column)) continue;
        *reinterpret_cast<float2*>(out + column) = {d[4 * j + 2 * half], d[4 * j + 2 * half + 1]};
      }
    }
  }

  // --- GEMM-Q ---

  // Bias, RMS norm over the head and rotary embedding of up to 64 rows of a head in
  // d[0 .. kHeadDim / 2); stores them. The job's target is the projection.
  __device__ __forceinline__ void finish_head(float* d, int head, BoxJob job) {
    constexpr int kHeadDim = Kernel::kHeadDim;
    if (job.num_rows <= 0) return;  // a short row block ends before this warpgroup's rows
    const ProjectionParams& projection = params.projections[job.target];
    job.column = head * kHeadDim;
    if (projection.bias) {
      for_pairs<kHeadDim / 2>(d, quad_lane(), [&](float* pair, int offset) {
        pair[0] += projection.bias[job.column + offset];
        pair[1] += projection.bias[job.column + offset + 1];
      });
    }
    if (projection.norm_weight) normalise(d, projection);
    if (projection.cos) rotate(d, projection, job);
#pragma unroll
    for (int i = 0; i < kHeadDim / 64; ++i) {
      put<T>(d + i * kBoxValues, job);
      job.column += 64;
    }
  }
  __device__ __forceinline__ void normalise(float* d, const ProjectionParams& projection) const {
    constexpr int kHeadDim = Kernel::kHeadDim;
    float squares[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) squares[i / 2 % 2] += d[i] * d[i];
    const float norm[2] = {rsqrtf(quad_sum(squares[0]) * (1.0f / kHeadDim) + projection.eps),
                           rsqrtf(quad_sum(squares[1]) * (1.0f / kHeadDim) + projection.eps)};
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      const float* weight = projection.norm_weight + 8 * j + 2 * quad_lane();
#pragma unroll
      for (int i = 0; i < 4; ++i) d[4 * j + i] *= norm[i / 2] * weight[i % 2];
    }
  }
  __device__ __forceinline__ void rotate(float* d, const ProjectionParams& projection,
                                         const BoxJob& job) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = job.row + min(row_in_box() + 8 * half, job.num_rows - 1);
#pragma unroll
      for (int j = 0; j < Kernel::kHeadDim / 8; ++j) {
        float* pair = d + 4 * j + 2 * half;
        const std::int64_t at = row * projection.rope_stride + 4 * j + quad_lane();
        const float c = projection.cos[at], s = projection.sin[at];
        const float x = pair[0], y = pair[1];
        pair[0] = x * c - y * s;
        pair[1] = x * s + y * c;
      }
    }
  }
};

}  // namespace flashomni::cuda
