// simd_attention.cpp -- f32 block-sparse attention, transposed: lanes are query rows.
//
//   S^T = K Q^T      [run, 64]       K is broadcast from where it lies, Q^T is packed once
//   P^T = exp(S^T - row max)         down the columns: no reduction across lanes
//   O^T = O^T alpha + V^T P^T        [head_dim, 64]; V is broadcast from where it lies
//
// Nothing of K or V is copied, so a skipped block costs nothing. Rows are walked in chunks of 64.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd_attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/cache_control.h>  // after foreach_target.h

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

// The working set of one chunk, in a worker's scratch memory.
struct Chunk {
  float* q_t;      // [head_dim][kPanel], times scale log2(e)
  float* o_t;      // [head_dim][kPanel]
  float* scores;   // [kRun][kPanel]
  float* row_max;  // [kPanel], base-2
  float* row_sum;  // [kPanel]
};

Chunk make_chunk(void* scratch, int head_dim) {
  float* memory = static_cast<float*>(scratch);
  Chunk chunk;
  chunk.q_t = memory;
  chunk.o_t = chunk.q_t + head_dim * kPanel;
  chunk.scores = chunk.o_t + head_dim * kPanel;
  chunk.row_max = chunk.scores + kRun * kPanel;
  chunk.row_sum = chunk.row_max + kPanel;
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

// sums[r, lanes] += sum over k of a[r a_row + k a_k] b[k, lanes], for kR rows and kV vectors.
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

// Scores of kR tokens; `row_max` keeps up with them.
template <int kR, int kV>
HWY_INLINE void score_block(int head_dim, const float* k, index_t k_stride, const float* q_t,
                            float* scores, FloatVec (&row_max)[kV]) {
  FloatVec sums[kR][kV];
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) sums[r][v] = hn::Zero(Floats());
  }
  multiply<kR, kV>(head_dim, k, k_stride, 1, q_t, sums);
  store_block<kR, kV>(sums, scores);
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) row_max[v] = hn::Max(row_max[v], sums[r][v]);
  }
}

template <int kV>
HWY_INLINE void score_rows(int rows, int head_dim, const float* k, index_t k_stride,
                           const float* q_t, float* scores, FloatVec (&row_max)[kV]) {
  switch (rows) {
    case 1: return score_block<1, kV>(head_dim, k, k_stride, q_t, scores, row_max);
    case 2: return score_block<2, kV>(head_dim, k, k_stride, q_t, scores, row_max);
    case 3: return score_block<3, kV>(head_dim, k, k_stride, q_t, scores, row_max);
    case 4: return score_block<4, kV>(head_dim, k, k_stride, q_t, scores, row_max);
    case 5: return score_block<5, kV>(head_dim, k, k_stride, q_t, scores, row_max);
    default: return score_block<6, kV>(head_dim, k, k_stride, q_t, scores, row_max);
  }
}

// kR columns of the output: what was summed before, times alpha, plus this run.
template <int kR, int kV>
HWY_INLINE void value_block(int count, const float* v, index_t v_stride, const float* p,
                            const FloatVec (&alpha)[kV], float* o_t) {
  FloatVec sums[kR][kV];
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      sums[r][v] = hn::Mul(hn::LoadU(Floats(), o_t + r * kPanel + v * kLanes), alpha[v]);
    }
  }
  multiply<kR, kV>(count, v, 1, v_stride, p, sums);
  store_block<kR, kV>(sums, o_t);
}

// head_dim is a multiple of 8, so two columns or four are left over.
template <int kV>
HWY_INLINE void value_columns(int columns, int count, const float* v, index_t v_stride,
                              const float* p, const FloatVec (&alpha)[kV], float* o_t) {
  switch (columns) {
    case 2: return value_block<2, kV>(count, v, v_stride, p, alpha, o_t);
    case 4: return value_block<4, kV>(count, v, v_stride, p, alpha, o_t);
    default: return value_block<6, kV>(count, v, v_stride, p, alpha, o_t);
  }
}

// Asks for `count` rows of K or V ahead of their use: rows of a head lie too far apart for the
// processor to guess the next.
HWY_INLINE void prefetch_rows(const float* from, index_t stride, int count, int head_dim) {
  constexpr int kLine = 64 / sizeof(float);
  for (int r = 0; r < count; ++r) {
    for (int column = 0; column < head_dim; column += kLine) {
      hwy::Prefetch(from + r * stride + column);
    }
  }
}

// Scores of a run for one group of lanes, their exponentials, and alpha, by which what was summed
// before has to shrink because the row maximum grew.
template <int kHeadDim, int kV>
HWY_INLINE void softmax_group(const AttentionJob& job, const KvRun& run, const Chunk& chunk,
                              int lane, FloatVec (&alpha)[kV]) {
  const Floats d;
  const int head_dim = kHeadDim ? kHeadDim : job.head_dim;
  const float* k = static_cast<const float*>(job.k) + run.start * job.k_stride;
  float* scores = chunk.scores + lane;
  FloatVec row_max[kV], row_sum[kV];
  for (int v = 0; v < kV; ++v) row_max[v] = hn::Set(d, kLowest);
  for (int i = 0; i < run.count; i += kRows) {
    const int rows = std::min(kRows, run.count - i);
    const int next_rows = std::min(kRows, run.count - i - rows);
    prefetch_rows(k + (i + rows) * job.k_stride, job.k_stride, next_rows, head_dim);
    score_rows<kV>(rows, head_dim, k + i * job.k_stride, job.k_stride, chunk.q_t + lane,
                   scores + i * kPanel, row_max);
  }
  for (int v = 0; v < kV; ++v) {
    const FloatVec old_max = hn::LoadU(d, chunk.row_max + lane + v * kLanes);
    row_max[v] = hn::Max(old_max, row_max[v]);
    alpha[v] = exp2(d, hn::Sub(old_max, row_max[v]));
    row_sum[v] = hn::Mul(hn::LoadU(d, chunk.row_sum + lane + v * kLanes), alpha[v]);
  }
  for (int i = 0; i < run.count; ++i) {
    HWY_UNROLL(4) for (int v = 0; v < kV; ++v) {
      float* score = scores + i * kPanel + v * kLanes;
      const FloatVec p = exp2(d, hn::Sub(hn::LoadU(d, score), row_max[v]));
      row_sum[v] = hn::Add(row_sum[v], p);
      hn::StoreU(p, d, score);
    }
  }
  for (int v = 0; v < kV; ++v) {
    hn::StoreU(row_max[v], d, chunk.row_max + lane + v * kLanes);
    hn::StoreU(row_sum[v], d, chunk.row_sum + lane + v * kLanes);
  }
}

template <int kHeadDim, int kV>
HWY_INLINE void attend_run(const AttentionJob& job, const KvRun& run, const Chunk& chunk,
                           int lane) {
  const int head_dim = kHeadDim ? kHeadDim : job.head_dim;
  const float* v = static_cast<const float*>(job.v) + run.start * job.v_stride;
  FloatVec alpha[kV];
  softmax_group<kHeadDim, kV>(job, run, chunk, lane, alpha);
  const float* p = chunk.scores + lane;
  float* o_t = chunk.o_t + lane;
  for (int i = 0; i < head_dim; i += kRows) {
    value_columns<kV>(std::min(kRows, head_dim - i), run.count, v + i, job.v_stride, p, alpha,
                      o_t + i * kPanel);
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
    job.lse[first_row + row] = sum > 0 ? (chunk.row_max[row] + std::log2(sum)) / kLog2E
                                       : -std::numeric_limits<float>::infinity();
  }
}

template <int kHeadDim>
void attend_chunk(const AttentionJob& job, int num_rows, const Chunk& chunk) {
  std::fill_n(chunk.o_t, job.head_dim * kPanel, 0.0f);
  std::fill_n(chunk.row_max, kPanel, kLowest);
  std::fill_n(chunk.row_sum, kPanel, 0.0f);
  for (int i = 0; i < job.num_runs; ++i) {
    if constexpr (kLanes == 16) {
      if (num_rows > 32) {
        attend_run<kHeadDim, 4>(job, job.runs[i], chunk, 0);
      } else {
        attend_run<kHeadDim, 2>(job, job.runs[i], chunk, 0);
      }
    } else {
      constexpr int kV = kLanes == 8 ? 2 : 4;  // 16 registers on AVX2
      for (int lane = 0; lane < num_rows; lane += kV * kLanes) {
        attend_run<kHeadDim, kV>(job, job.runs[i], chunk, lane);
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
