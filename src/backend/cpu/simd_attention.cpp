// simd_attention.cpp -- f32 block-sparse attention, transposed: lanes are query rows.
//
//   S^T = K Q^T - m      [run, 64]       K is broadcast, Q^T packed; m: a bound of the row
//   P^T = exp2(S^T)                      down the columns: no reduction across lanes
//   O^T += V^T P^T       [head_dim, 64]  V is broadcast
//
// The bound of a row is the largest score of its first run, raised only when a later score exceeds
// it by 2^8: until then sums need no correction, and at f32's range they lose nothing (the idea of
// FlashAttention-4). Rows are walked in chunks of 64. While one product runs, the rows that the
// next one reads are fetched.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd_attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"
#include "backend/cpu/simd_transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504089f;
constexpr float kLowest = -3e38f;  // below any score; finite, so that differences are numbers
constexpr int kRows = 6;           // rows of a register block, as in simd_gemm.cpp
constexpr int kRun = 64;  // tokens: 128 would push V and Q^T out of a 48 KiB L1 (4 % slower)
static_assert(kRun <= kMaxRun);
constexpr float kSlack = 8;  // by how much scores may exceed their row's bound

// The working set of one chunk, in a worker's scratch memory.
struct Chunk {
  float* q_t;      // [head_dim][kPanel], times scale log2(e)
  float* o_t;      // [head_dim][kPanel]
  float* scores;   // [kRun][kPanel]
  float* bound;    // [kPanel], base-2: see above
  float* row_sum;  // [kPanel]
};

Chunk make_chunk(void* scratch, int head_dim) {
  float* memory = static_cast<float*>(scratch);
  Chunk chunk;
  chunk.q_t = memory;
  chunk.o_t = chunk.q_t + head_dim * kPanel;
  chunk.scores = chunk.o_t + head_dim * kPanel;
  chunk.bound = chunk.scores + kRun * kPanel;
  chunk.row_sum = chunk.bound + kPanel;
  return chunk;
}

std::size_t attention_scratch_bytes(int head_dim) {
  return sizeof(float) * kPanel * static_cast<std::size_t>(2 * head_dim + kRun + 2);
}

// Q^T of up to 64 rows, times scale log2(e); lanes past num_rows are zero.
void pack_queries(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  const float* q = static_cast<const float*>(job.q) + first_row * job.q_stride;
  const float scale = job.scale * kLog2E;
  if (num_rows == kPanel) {
    transpose_rows(q, job.q_stride, job.head_dim, scale, chunk.q_t);
    return;
  }
  for (int row = 0; row < kPanel; ++row) {  // a whole panel, in memory that o_t needs later
    float* copy = chunk.o_t + row * job.head_dim;
    if (row < num_rows) std::copy_n(q + row * job.q_stride, job.head_dim, copy);
    if (row >= num_rows) std::fill_n(copy, job.head_dim, 0.0f);
  }
  transpose_rows(chunk.o_t, job.head_dim, job.head_dim, scale, chunk.q_t);
}

// Fetches the next kRows rows, from `row` on, of `count` rows of K or V.
template <Nearness kNearness>
HWY_INLINE void fetch_rows(const float* x, index_t stride, int row, int count, int head_dim) {
  constexpr int kLine = 64 / sizeof(float);
  for (const int end = std::min(row + kRows, count); row < end; ++row) {
    for (int i = 0; i < head_dim; i += kLine) {
      __builtin_prefetch(x + row * stride + i, 0, kNearness);
    }
  }
}

// sums[r, lanes] += sum over k of a[r a_row + k a_k] b[k, lanes], for kR rows and kV vectors.
// (Unrolled by 2 or 4 it ran slower.)
template <int kR, int kV>
HWY_INLINE void multiply(int depth, const float* HWY_RESTRICT a, index_t a_row, index_t a_k,
                         const float* HWY_RESTRICT b, FloatVec (&sums)[kR][kV]) {
  const Floats d;
  for (int k = 0; k < depth; ++k) {
    FloatVec bv[kV];
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      bv[v] = hn::LoadU(d, b + k * kPanel + v * kLanes);
    }
    HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
      const FloatVec av = hn::Set(d, a[r * a_row + k * a_k]);
      HWY_UNROLL(4) for (int v = 0; v < kV; ++v) { sums[r][v] = hn::MulAdd(av, bv[v], sums[r][v]); }
    }
  }
}

template <int kR, int kV>
HWY_INLINE void store_block(const FloatVec (&sums)[kR][kV], float* c) {
  const Floats d;
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      hn::StoreU(sums[r][v], d, c + r * kPanel + v * kLanes);
    }
  }
}

// What one register block of a product reads and writes.
struct BlockJob {
  int depth;
  const float* a;      // row 0 of the block
  index_t a_row, a_k;  // elements between rows, and between steps along the depth
  const float* b;      // [depth][kPanel], from the group's first lane on
  float* c;
};

// Scores of kR tokens over `init`; `row_max` keeps up with them.
template <int kR, int kV>
HWY_INLINE void score_block(const BlockJob& job, const FloatVec (&init)[kV],
                            FloatVec (&row_max)[kV]) {
  FloatVec sums[kR][kV];
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) sums[r][v] = init[v];
  }
  multiply(job.depth, job.a, job.a_row, job.a_k, job.b, sums);
  store_block<kR, kV>(sums, job.c);
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) row_max[v] = hn::Max(row_max[v], sums[r][v]);
  }
}

template <int kV>
HWY_INLINE void score_rows(int rows, const BlockJob& job, const FloatVec (&init)[kV],
                           FloatVec (&row_max)[kV]) {
  switch (rows) {
    case 1: return score_block<1, kV>(job, init, row_max);
    case 2: return score_block<2, kV>(job, init, row_max);
    case 3: return score_block<3, kV>(job, init, row_max);
    case 4: return score_block<4, kV>(job, init, row_max);
    case 5: return score_block<5, kV>(job, init, row_max);
    default: return score_block<6, kV>(job, init, row_max);
  }
}

// kR columns of the output: what was summed before plus this run.
template <int kR, int kV>
HWY_INLINE void value_block(const BlockJob& job) {
  FloatVec sums[kR][kV];
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      sums[r][v] = hn::LoadU(Floats(), job.c + r * kPanel + v * kLanes);
    }
  }
  multiply(job.depth, job.a, job.a_row, job.a_k, job.b, sums);
  store_block<kR, kV>(sums, job.c);
}

// head_dim is a multiple of 8, so two columns or four are left over.
template <int kV>
HWY_INLINE void value_columns(int columns, const BlockJob& job) {
  switch (columns) {
    case 2: return value_block<2, kV>(job);
    case 4: return value_block<4, kV>(job);
    default: return value_block<6, kV>(job);
  }
}

// Scores of a run for one group of lanes, relative to the rows' bounds; returns their maxima.
template <int kHeadDim, int kV>
HWY_INLINE void score_run(const AttentionJob& job, const KvRun& run, const Chunk& chunk, int lane,
                          FloatVec (&row_max)[kV]) {
  const Floats d;
  const int head_dim = kHeadDim ? kHeadDim : job.head_dim;
  const float* k = static_cast<const float*>(job.k) + run.start * job.k_stride;
  const float* v = static_cast<const float*>(job.v) + run.start * job.v_stride;
  FloatVec init[kV];
  for (int n = 0; n < kV; ++n) {
    row_max[n] = hn::Set(d, kLowest);
    init[n] = hn::Neg(hn::LoadU(d, chunk.bound + lane + n * kLanes));
  }
  for (int i = 0; i < run.count; i += kRows) {
    if (lane == 0) fetch_rows<kIntoL1>(v, job.v_stride, i, run.count, head_dim);
    score_rows<kV>(std::min(kRows, run.count - i),
                   {head_dim, k + i * job.k_stride, job.k_stride, 1, chunk.q_t + lane,
                    chunk.scores + lane + i * kPanel},
                   init, row_max);
  }
}

// Moves the bounds of one group of lanes up by `growth`: in the scores of the run, and, unless
// nothing was summed yet, in the sums.
template <int kV>
void raise_bounds(const AttentionJob& job, const KvRun& run, const Chunk& chunk, int lane,
                  bool first, const FloatVec (&growth)[kV]) {
  const Floats d;
  for (int v = 0; v < kV; ++v) {
    const int column = lane + v * kLanes;
    const auto add = [&](float* to, FloatVec x)
                         HWY_ATTR { hn::StoreU(hn::Add(hn::LoadU(d, to), x), d, to); };
    add(chunk.bound + column, growth[v]);
    for (int i = 0; i < run.count; ++i) {
      add(chunk.scores + i * kPanel + column, hn::Neg(growth[v]));
    }
    if (first) continue;
    const FloatVec shrink = exp2(d, hn::Neg(growth[v]));
    const auto scale = [&](float* to)
                           HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(d, to), shrink), d, to); };
    scale(chunk.row_sum + column);
    for (int i = 0; i < job.head_dim; ++i) scale(chunk.o_t + i * kPanel + column);
  }
}

// Turns the scores of a run into weights, and adds them up.
template <int kV>
HWY_INLINE void weigh_run(const KvRun& run, const Chunk& chunk, int lane) {
  const Floats d;
  FloatVec row_sum[kV];
  for (int v = 0; v < kV; ++v) row_sum[v] = hn::LoadU(d, chunk.row_sum + lane + v * kLanes);
  for (int i = 0; i < run.count; ++i) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      float* score = chunk.scores + i * kPanel + lane + v * kLanes;
      const FloatVec p = exp2(d, hn::LoadU(d, score));
      row_sum[v] = hn::Add(row_sum[v], p);
      hn::StoreU(p, d, score);
    }
  }
  for (int v = 0; v < kV; ++v) hn::StoreU(row_sum[v], d, chunk.row_sum + lane + v * kLanes);
}

// Attends to job.runs[index] for one group of lanes.
template <int kHeadDim, int kV>
HWY_INLINE void attend_run(const AttentionJob& job, int index, const Chunk& chunk, int lane) {
  const Floats d;
  const int head_dim = kHeadDim ? kHeadDim : job.head_dim;
  const KvRun& run = job.runs[index];
  const bool first = index == 0;
  FloatVec row_max[kV];
  score_run<kHeadDim, kV>(job, run, chunk, lane, row_max);
  bool grew = first;
  for (int v = 0; v < kV; ++v) {
    grew |= !hn::AllFalse(d, hn::Gt(row_max[v], hn::Set(d, kSlack)));
    if (!first) row_max[v] = hn::Max(row_max[v], hn::Zero(d));
  }
  if (grew) raise_bounds<kV>(job, run, chunk, lane, first, row_max);
  weigh_run<kV>(run, chunk, lane);

  const KvRun& next = job.runs[std::min(index + 1, job.num_runs - 1)];
  const float* next_k = static_cast<const float*>(job.k) + next.start * job.k_stride;
  const float* v = static_cast<const float*>(job.v) + run.start * job.v_stride;
  for (int i = 0; i < head_dim; i += kRows) {
    const int row = i * next.count / head_dim;
    if (lane == 0) fetch_rows<kIntoL2>(next_k, job.k_stride, row, next.count, head_dim);
    value_columns<kV>(
        std::min(kRows, head_dim - i),
        {run.count, v + i, 1, job.v_stride, chunk.scores + lane, chunk.o_t + lane + i * kPanel});
  }
}

// Divides by the row sums and stores the rows.
void store_chunk(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  float inverse[kPanel];
  for (int row = 0; row < kPanel; ++row) {
    inverse[row] = chunk.row_sum[row] > 0 ? 1.0f / chunk.row_sum[row] : 0.0f;
  }
  dispatch_float(job.out_dtype, [&](auto type) HWY_ATTR {
    using T = decltype(type);
    T* out = static_cast<T*>(job.out) + first_row * job.out_stride;
    if (num_rows == kPanel) {
      transpose_back(chunk.o_t, inverse, job.head_dim, out, job.out_stride);
      return;
    }
    T* rows = reinterpret_cast<T*>(chunk.q_t);  // no longer needed
    transpose_back(chunk.o_t, inverse, job.head_dim, rows, job.head_dim);
    for (int row = 0; row < num_rows; ++row) {
      std::copy_n(rows + row * job.head_dim, job.head_dim, out + row * job.out_stride);
    }
  });
}

void store_lse(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  for (int row = 0; row < num_rows; ++row) {
    const float sum = chunk.row_sum[row];
    job.lse[first_row + row] = sum > 0 ? (chunk.bound[row] + std::log2(sum)) / kLog2E
                                       : -std::numeric_limits<float>::infinity();
  }
}

template <int kHeadDim>
void attend_chunk(const AttentionJob& job, int num_rows, const Chunk& chunk) {
  std::fill_n(chunk.o_t, job.head_dim * kPanel, 0.0f);
  std::fill_n(chunk.bound, kPanel, 0.0f);
  std::fill_n(chunk.row_sum, kPanel, 0.0f);
  for (int i = 0; i < job.num_runs; ++i) {
    if constexpr (kLanes == 16) {
      if (num_rows > 32) {
        attend_run<kHeadDim, 4>(job, i, chunk, 0);
      } else {
        attend_run<kHeadDim, 2>(job, i, chunk, 0);
      }
    } else {
      constexpr int kV = kLanes == 8 ? 2 : 4;  // 16 registers on AVX2
      for (int lane = 0; lane < num_rows; lane += kV * kLanes) {
        attend_run<kHeadDim, kV>(job, i, chunk, lane);
      }
    }
  }
}

void attend(const AttentionJob& job) {
  const Chunk chunk = make_chunk(job.scratch, job.head_dim);
  for (int row = 0; row < job.num_rows; row += kPanel) {
    const int num_rows = std::min(kPanel, job.num_rows - row);
    pack_queries(job, job.first_row + row, num_rows, chunk);
    switch (job.head_dim) {
      case 64: attend_chunk<64>(job, num_rows, chunk); break;
      case 128: attend_chunk<128>(job, num_rows, chunk); break;
      default: attend_chunk<0>(job, num_rows, chunk);
    }
    store_chunk(job, job.first_row + row, num_rows, chunk);
    if (job.lse) store_lse(job, job.first_row + row, num_rows, chunk);
  }
}

}  // namespace

constexpr AttentionKernel kAttention{&attend, &attention_scratch_bytes, kRun};

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashomni::cpu {

const AttentionKernel& f32_attention(SimdTarget target) {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case SimdTarget::kAvx512: return N_AVX3::kAttention;
#endif
#if HWY_TARGETS & HWY_AVX2
    case SimdTarget::kAvx2: return N_AVX2::kAttention;
#endif
    default: return HWY_STATIC_DISPATCH(kAttention);
  }
}

}  // namespace flashomni::cpu
#endif  // HWY_ONCE
