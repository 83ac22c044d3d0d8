// bf16_attention-inl.h -- bf16 attention over a panel product: the transposed form of
// simd_attention.cpp with both products as C += A B of 64 columns.
//
//   S^T = K Q^T   A = packed rows of K,         B = Q in pairs [head_dim / 2][64][2]
//   O^T += V^T P  A = V^T, transposed once per head, B = the weights in pairs [tokens / 2][64][2]
//
// Include only in files compiled for AVX512_BF16; everything here is internal to the file.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/cpu/kernels.h"

namespace flashomni::cpu {
namespace {

constexpr int kVectors = kPanel / 16;  // registers of 16 floats in a row of lanes
constexpr float kLog2E = 1.44269504089f;
constexpr float kLowest = -3e38f;  // below any score; finite, so that differences are numbers
constexpr float kSlack = 8;  // by how much scores, times log2(e), may exceed their row's bound

using Vectors = __m512[kVectors];

// Transposes 16 rows of 16 32-bit elements.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// The first `count` (<= 16) 32-bit elements, zeros after them.
inline __m512i load_words(const void* from, int count) {
  if (count >= 16) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), from);
}

// 2^x for x <= 127, to 3e-6, exact at integers: the weights are rounded to bf16 next, their sum,
// and with it lse, is not.
inline __m512 exp2_for_bf16(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
  __m512 p = _mm512_set1_ps(1.3426684e-2f);  // minimax of the relative error on [0, 1]
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(5.2242475e-2f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(2.4128020e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(6.9304485e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

// The working set of 64 query rows ("lanes"), in a worker's scratch memory.
struct Chunk {
  std::uint16_t* q;  // [head_dim / 2][kPanel][2]
  std::uint16_t* p;  // [kMaxRun / 2][kPanel][2]
  float* scores;     // [kMaxRun][kPanel]
  float* o_t;        // [head_dim][kPanel]
  float* bound;      // [kPanel], of the scores times log2(e): see simd_attention.cpp
  float* row_sum;    // [kPanel]
};

inline Chunk make_chunk(void* scratch, int head_dim) {
  auto* halves = static_cast<std::uint16_t*>(scratch);
  Chunk chunk;
  chunk.q = halves;
  chunk.p = chunk.q + head_dim * kPanel;
  chunk.scores = reinterpret_cast<float*>(chunk.p + kMaxRun * kPanel);
  chunk.o_t = chunk.scores + kMaxRun * kPanel;
  chunk.bound = chunk.o_t + head_dim * kPanel;
  chunk.row_sum = chunk.bound + kPanel;
  return chunk;
}

inline std::size_t bf16_attention_scratch_bytes(int head_dim) {
  const std::size_t rows = static_cast<std::size_t>(head_dim) + kMaxRun;
  return rows * kPanel * 2 + (rows + 2) * kPanel * 4;
}

inline void pack_queries(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  const auto* q = static_cast<const std::uint16_t*>(job.q) + first_row * job.q_stride;
  const int pairs = job.head_dim / 2;
  for (int lane = 0; lane < kPanel; lane += 16) {
    for (int pair = 0; pair < pairs; pair += 16) {
      __m512i rows[16];
      for (int i = 0; i < 16; ++i) {
        rows[i] = lane + i < num_rows
                      ? load_words(q + (lane + i) * job.q_stride + 2 * pair, pairs - pair)
                      : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int i = 0; i < 16 && pair + i < pairs; ++i) {
        _mm512_store_si512(chunk.q + ((pair + i) * kPanel + lane) * 2, rows[i]);
      }
    }
  }
}

// V^T of one kv block, [head_dim][packed_tokens], zero-padded to a multiple of `granule`.
template <int kGranule>
void pack_values(const void* v, index_t v_stride, int count, int head_dim, int packed_start,
                 int packed_tokens, void* packed) {
  const auto* from = static_cast<const std::uint16_t*>(v);
  auto* to = static_cast<std::uint16_t*>(packed) + packed_start;
  const int padded = (count + kGranule - 1) / kGranule * kGranule;
  const auto row = [&](int token, int column) {
    if (token >= count) return _mm256_setzero_si256();
    const int columns = head_dim - column;
    const auto mask = static_cast<__mmask16>(columns >= 16 ? 0xffffu : (1u << columns) - 1);
    return _mm256_maskz_loadu_epi16(mask, from + token * v_stride + column);
  };
  for (int token = 0; token < padded; token += 32) {
    const int words = (padded - token + 1) / 2;
    const auto mask = static_cast<__mmask16>(words >= 16 ? 0xffffu : (1u << words) - 1);
    for (int column = 0; column < head_dim; column += 16) {
      __m512i pairs[16];  // tokens 2 i and 2 i + 1 of 16 columns
      for (int i = 0; i < 16; ++i) {
        const __m512i even = _mm512_cvtepu16_epi32(row(token + 2 * i, column));
        const __m512i odd = _mm512_cvtepu16_epi32(row(token + 2 * i + 1, column));
        pairs[i] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
      }
      transpose(pairs);
      for (int i = 0; i < 16 && column + i < head_dim; ++i) {
        _mm512_mask_storeu_epi32(to + index_t{column + i} * packed_tokens + token, mask, pairs[i]);
      }
    }
  }
}

// Weights of `count` tokens from their scores, relative to the rows' bounds, in pairs, zeros up to
// `padded`; adds them up. False, and nothing is added, if a score exceeds its bound by kSlack.
inline bool weigh(const Chunk& chunk, int count, int padded, float scale_log2, std::uint16_t* p) {
  const __m512 scale = _mm512_set1_ps(scale_log2);
  Vectors bound, top, sum;
  for (int v = 0; v < kVectors; ++v) {
    bound[v] = _mm512_load_ps(chunk.bound + 16 * v);
    sum[v] = _mm512_load_ps(chunk.row_sum + 16 * v);
    top[v] = _mm512_set1_ps(kLowest);
  }
  const auto weight = [&](int token, int v) {
    const __m512 score = _mm512_load_ps(chunk.scores + token * kPanel + 16 * v);
    const __m512 x = _mm512_fmsub_ps(score, scale, bound[v]);
    top[v] = _mm512_max_ps(top[v], x);
    const __m512 weight = exp2_for_bf16(x);
    sum[v] = _mm512_add_ps(sum[v], weight);
    return weight;
  };
  // Lanes of two registers, interleaved: 0, 16, 1, 17, ...
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int token = 0; token < padded; token += 2) {
    for (int v = 0; v < kVectors; ++v) {
      const __m512 even = token < count ? weight(token, v) : _mm512_setzero_ps();
      const __m512 odd = token + 1 < count ? weight(token + 1, v) : _mm512_setzero_ps();
      const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
      _mm512_store_si512(p + token * kPanel + 32 * v, _mm512_permutexvar_epi16(interleave, both));
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    if (_mm512_cmp_ps_mask(top[v], _mm512_set1_ps(kSlack), _CMP_GT_OQ)) return false;
  }
  for (int v = 0; v < kVectors; ++v) _mm512_store_ps(chunk.row_sum + 16 * v, sum[v]);
  return true;
}

// Moves the bounds up to the largest of `count` scores; what was summed before shrinks accordingly.
inline void raise_bounds(const Chunk& chunk, int count, float scale_log2, int head_dim) {
  const __m512 scale = _mm512_set1_ps(scale_log2);
  for (int v = 0; v < kVectors; ++v) {
    const __m512 before = _mm512_load_ps(chunk.bound + 16 * v);
    __m512 top = before;
    for (int token = 0; token < count; ++token) {
      const __m512 score = _mm512_load_ps(chunk.scores + token * kPanel + 16 * v);
      top = _mm512_max_ps(top, _mm512_mul_ps(score, scale));
    }
    _mm512_store_ps(chunk.bound + 16 * v, top);
    const __m512 shrink = exp2_for_bf16(_mm512_sub_ps(before, top));
    const auto multiply = [&](float* x) {
      _mm512_store_ps(x, _mm512_mul_ps(_mm512_load_ps(x), shrink));
    };
    multiply(chunk.row_sum + 16 * v);
    for (int i = 0; i < head_dim; ++i) multiply(chunk.o_t + i * kPanel + 16 * v);
  }
}

// O^T += V^T P over the weights of run tokens [first, last).
template <class Product>
void add_values(const AttentionJob& job, const KvRun& run, const Chunk& chunk, int first,
                int last) {
  if (first == last) return;
  const auto* v_t = static_cast<const std::uint16_t*>(job.v) + run.start + first;
  const KPiece values{v_t, job.packed_tokens, chunk.p + first * kPanel, last - first};
  Product::multiply({&values, 1, job.head_dim, chunk.o_t, kPanel, chunk.o_t, kPanel});
}

template <class Product>
void attend_run(const AttentionJob& job, const KvRun& run, const Chunk& chunk, bool first_run) {
  const float scale_log2 = job.scale * kLog2E;
  int weighed = 0;  // tokens whose values are yet to be added
  int padded = 0;
  for (int token = 0; token < run.count; token += Product::kScoreRows) {
    const int count =
        run.count - token < Product::kScoreRows ? run.count - token : Product::kScoreRows;
    padded = token + (count + Product::kGranule - 1) / Product::kGranule * Product::kGranule;
    const auto* k = static_cast<const std::uint16_t*>(job.k) + (run.start + token) * job.k_stride;
    const KPiece keys{k, job.head_dim, chunk.q, job.head_dim};
    Product::multiply({&keys, 1, count, nullptr, 0, chunk.scores, kPanel});

    std::uint16_t* p = chunk.p + token * kPanel;
    const bool first = first_run && token == 0;
    if (!first && weigh(chunk, count, padded - token, scale_log2, p)) continue;
    add_values<Product>(job, run, chunk, weighed, token);
    weighed = token;
    raise_bounds(chunk, count, scale_log2, job.head_dim);
    weigh(chunk, count, padded - token, scale_log2, p);
  }
  add_values<Product>(job, run, chunk, weighed, padded);
}

// `columns` (<= 16) numbers of one row of the output.
inline void store_row(__m512 values, int columns, DType dtype, void* row, index_t offset) {
  const auto mask = static_cast<__mmask16>(columns >= 16 ? 0xffffu : (1u << columns) - 1);
  if (dtype == DType::kF32) {
    _mm512_mask_storeu_ps(static_cast<float*>(row) + offset, mask, values);
  } else {
    const auto narrow = (__m256i)_mm512_cvtneps_pbh(values);
    _mm256_mask_storeu_epi16(static_cast<std::uint16_t*>(row) + offset, mask, narrow);
  }
}

// Divides by the row sums and stores the rows.
inline void store_rows(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  for (int lane = 0; lane < num_rows; lane += 16) {
    const __m512 sum = _mm512_load_ps(chunk.row_sum + lane);
    const __mmask16 live = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 inverse = _mm512_maskz_div_ps(live, _mm512_set1_ps(1.0f), sum);
    for (int column = 0; column < job.head_dim; column += 16) {
      const int columns = job.head_dim - column;
      __m512i rows[16];
      for (int i = 0; i < 16; ++i) {
        const __m512 o = i < columns ? _mm512_load_ps(chunk.o_t + (column + i) * kPanel + lane)
                                     : _mm512_setzero_ps();
        rows[i] = _mm512_castps_si512(_mm512_mul_ps(o, inverse));
      }
      transpose(rows);
      for (int i = 0; i < 16 && lane + i < num_rows; ++i) {
        store_row(_mm512_castsi512_ps(rows[i]), columns, job.out_dtype, job.out,
                  (first_row + lane + i) * job.out_stride + column);
      }
    }
  }
}

inline void store_lse(const AttentionJob& job, int first_row, int num_rows, const Chunk& chunk) {
  for (int row = 0; row < num_rows; ++row) {
    const float sum = chunk.row_sum[row];
    job.lse[first_row + row] = sum > 0 ? (chunk.bound[row] + std::log2(sum)) / kLog2E
                                       : -std::numeric_limits<float>::infinity();
  }
}

// AttentionKernel::run over a product of the kind
//   struct Product {
//     static constexpr int kGranule;    // depths of V^T P are multiples of it
//     static constexpr int kScoreRows;  // tokens scored at a time: a multiple of kGranule
//     static void begin(), end();       // around its use
//     static void multiply(const PanelJob&);
//   };
template <class Product>
void attend(const AttentionJob& job) {
  static_assert(Product::kScoreRows % Product::kGranule == 0 && Product::kScoreRows <= kMaxRun);
  const Chunk chunk = make_chunk(job.scratch, job.head_dim);
  Product::begin();
  for (int row = 0; row < job.num_rows; row += kPanel) {
    const int num_rows = job.num_rows - row < kPanel ? job.num_rows - row : kPanel;
    pack_queries(job, job.first_row + row, num_rows, chunk);
    for (int i = 0; i < job.head_dim * kPanel; i += 16) {
      _mm512_store_ps(chunk.o_t + i, _mm512_setzero_ps());
    }
    for (int lane = 0; lane < kPanel; lane += 16) {
      _mm512_store_ps(chunk.bound + lane, _mm512_set1_ps(kLowest));
      _mm512_store_ps(chunk.row_sum + lane, _mm512_setzero_ps());
    }
    for (int i = 0; i < job.num_runs; ++i) {
      attend_run<Product>(job, job.runs[i], chunk, i == 0);
    }
    store_rows(job, job.first_row + row, num_rows, chunk);
    if (job.lse) store_lse(job, job.first_row + row, num_rows, chunk);
  }
  Product::end();
}

}  // namespace
}  // namespace flashomni::cpu
