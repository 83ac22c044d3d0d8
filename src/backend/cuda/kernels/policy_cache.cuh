// policy_cache.cuh -- which image blocks are cached: C and G from the probabilities that the rows
// of the map left, and the selection by both. Formulas: src/policy/guidance.cpp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/arrival.cuh"
#include "backend/cuda/device/load.cuh"
#include "backend/cuda/device/low_prefix.cuh"
#include "backend/cuda/kernels/policy_map.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

// A block of the q grid; 0 tokens unless it is image. The last is the kv block that holds the first
// token.
struct ImageRows {
  int first, tokens, first_kv;
};
// A block of the kv grid; 0 tokens if it is text.
struct ImageColumns {
  int first, tokens;
};

// Shared memory of CacheScores.
constexpr std::size_t cache_shared_bytes(int q_blocks, int kv_blocks) {
  const std::size_t q_bytes = sizeof(ImageRows) + sizeof(int);
  const std::size_t kv_bytes = 2 * sizeof(float) + sizeof(ImageColumns) + sizeof(int);
  const std::size_t bytes = 2 * (sizeof(int2) + sizeof(float) * padded(q_blocks)) +
                            q_bytes * q_blocks + kv_bytes * kv_blocks;
  return (bytes + 15) / 16 * 16;  // ptxas may read four values where fewer are left
}

// One item, all threads of a block together.
struct CacheScores {
  const SelectParams& params;
  int item;
  // Shared. Valid blocks and valid text blocks of both grids; per q block the sums of C and G; per
  // kv block what text rows see of it; per text column the softmax down the column; and the tables.
  int2 *q_counts, *kv_counts;
  float *c, *g;           // [padded(q_blocks)]
  float *seen, *inverse;  // [kv_blocks]
  ImageColumns* columns;  // [kv_blocks]
  ImageRows* rows;        // [q_blocks]
  int *text_q, *text_kv;  // [q_blocks], [kv_blocks]: indices of text blocks

  __device__ CacheScores(const SelectParams& params, int item, void* memory)
      : params(params),
        item(item),
        q_counts(static_cast<int2*>(memory)),
        kv_counts(q_counts + 1),
        c(reinterpret_cast<float*>(kv_counts + 1)),
        g(c + padded(params.map.q.num_blocks)),
        seen(g + padded(params.map.q.num_blocks)),
        inverse(seen + params.map.kv.num_blocks),
        columns(reinterpret_cast<ImageColumns*>(inverse + params.map.kv.num_blocks)),
        rows(reinterpret_cast<ImageRows*>(columns + params.map.kv.num_blocks)),
        text_q(reinterpret_cast<int*>(rows + params.map.q.num_blocks)),
        text_kv(text_q + params.map.q.num_blocks) {}

  // Else C and G are 0.
  __device__ bool has_scores() const {
    return q_counts->y > 0 && q_counts->y < q_counts->x && kv_counts->x > 0;
  }

  // What no kernel writes.
  __device__ void read_tables() const {
    const GridTable &q = params.map.q, &kv = params.map.kv;
    if (threadIdx.x == 0) {
      *q_counts = q.counts[item];
      *kv_counts = kv.counts[item];
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < q.num_blocks; i += kMapThreads) {
      const int4 block = q.blocks[item * q.num_blocks + i];
      rows[i] = {block.x, block.z ? 0 : block.y, block.w};
      text_q[i] = q.text[item * q.num_blocks + i];
    }
#pragma unroll 1
    for (int j = threadIdx.x; j < kv.num_blocks; j += kMapThreads) {
      const int4 block = kv.blocks[item * kv.num_blocks + j];
      columns[j] = {block.x, block.z ? 0 : block.y};
      text_kv[j] = kv.text[item * kv.num_blocks + j];
    }
  }

  // Sums over the text rows of every column; sums over the image rows of text columns, a warp each,
  // the last warps first, which have no sum of the other kind.
  __device__ void summarise_columns(int head) const {
    const float* text_rows = rows_of(head);
    for (int j = threadIdx.x; j < kv_counts->x; j += kMapThreads) {
      float sum = 0;
#pragma unroll 4
      for (int t = 0; t < q_counts->y; ++t) sum += text_rows[text_q[t] * params.map.leading + j];
      seen[j] = sum;
    }
    const int lane = threadIdx.x % 32;
    for (int t = kMapWarps - 1 - threadIdx.x / 32; t < kv_counts->y; t += kMapWarps) {
      const float* column = column_of(head, t);
      float sum = 0;
      for (int first = lane; first < q_counts->x; first += 4 * 32) {
        float values[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = first + 32 * j;
          values[j] = load_float_if(i < q_counts->x && rows[i].tokens > 0, column + i);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += values[j];
      }
      sum = warp_sum(sum);
      if (lane == 0) inverse[t] = 1 / sum;
    }
    __syncthreads();
  }

  // A kv block's mass is shared out over the q blocks that its tokens belong to.
  __device__ float contribution(const ImageRows& q) const {
    float sum = 0;
    for (int j = q.first_kv; j < kv_counts->x; ++j) {
      const ImageColumns kv = columns[j];
      if (kv.first >= q.first + q.tokens) break;
      const int overlap = min(q.first + q.tokens, kv.first + kv.tokens) - max(q.first, kv.first);
      if (overlap <= 0) continue;
      sum += seen[j] * static_cast<float>(overlap) / static_cast<float>(kv.tokens);
    }
    return sum;
  }
  // The softmax is that of probabilities, which are at most 1: their exponentials need no maximum.
  __device__ float guidance(int head, int i) const {
    float sum = 0;
#pragma unroll 4
    for (int t = 0; t < kv_counts->y; ++t) sum += column_of(head, t)[i] * inverse[t];
    return sum;
  }

  // Adds those of one head, and writes them down.
  __device__ void add_head(int head) const {
    const bool has = has_scores();
    if (has) summarise_columns(head);
    const int q_blocks = params.map.q.num_blocks;
    for (int i = threadIdx.x; i < q_blocks; i += kMapThreads) {
      const bool is_image = has && rows[i].tokens > 0;
      const float its_c = is_image ? contribution(rows[i]) : 0;
      const float its_g = is_image ? guidance(head, i) : 0;
      if (params.c) params.c[row_of(head) * q_blocks + i] = its_c;
      if (params.g) params.g[row_of(head) * q_blocks + i] = its_g;
      c[i] += its_c;
      g[i] += its_g;
    }
    __syncthreads();
  }

 private:
  __device__ std::int64_t row_of(int head) const {
    return static_cast<std::int64_t>(item) * params.map.num_heads + head;
  }
  __device__ const float* rows_of(int head) const {
    return params.text_rows + row_of(head) * params.map.q.num_blocks * params.map.leading;
  }
  __device__ const float* column_of(int head, int t) const {
    return params.text_columns +
           (row_of(head) * params.map.kv.num_blocks + text_kv[t]) * params.map.q.num_blocks;
  }
};

// Takes a q block of a head out of the cache and skip words.
__device__ inline void cache_block(const SelectParams& params, int item, int head, int q_block) {
  const std::int64_t token_row =
      static_cast<std::int64_t>(item) * params.map.q.num_blocks + q_block;
  atomicAnd(params.cache + token_row * params.head_words + head / 32, ~(1u << (head % 32)));
  const std::int64_t head_row = static_cast<std::int64_t>(item) * params.map.num_heads + head;
  std::uint32_t* words =
      params.skip + (head_row * params.map.q.num_blocks + q_block) * params.kv_words;
  for (int w = 0; w < params.kv_words; ++w) words[w] = 0;
}

// Heads first .. end - 1, whose scores are summed.
struct HeadRange {
  int first, end;
};

// Clears the symbols of the blocks that some heads cache, once `others` thread blocks have written
// theirs. All threads of a block together.
__device__ inline void clear_cached(const CacheScores& scores, HeadRange heads,
                                    SelectCounters& counters, int others) {
  __shared__ LowPrefix low[2];
  const SelectParams& params = scores.params;
  const int q_blocks = params.map.q.num_blocks, count = padded(q_blocks);
  for (int i = threadIdx.x; i < q_blocks; i += kMapThreads) scores.c[i] = scores.g[i] = 0;
  for (int head = heads.first; head < heads.end; ++head) scores.add_head(head);
  for (int i = threadIdx.x; i < count; i += kMapThreads) {
    const bool may_be_cached = i < q_blocks && scores.q_counts->y > 0 && scores.rows[i].tokens > 0;
    if (!may_be_cached) scores.c[i] = scores.g[i] = -1;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < 2) {
    const LowPrefix found = low_prefix(warp ? scores.g : scores.c, count, params.tau_q);
    if (lane == 0) low[warp] = found;
  } else if (threadIdx.x == kMapThreads - 1) {
    await_arrivals(&counters.words, others);
    counters = {};
  }
  __syncthreads();
  for (int head = heads.first + warp; head < heads.end; head += kMapWarps) {
    LowPrefixWalk low_c(low[0]), low_g(low[1]);
    const std::int64_t row = static_cast<std::int64_t>(scores.item) * params.map.num_heads + head;
    for (int i = lane; i < count; i += 32) {
      const bool in_c = low_c.selects(scores.c[i]), in_g = low_g.selects(scores.g[i]);
      if (!in_c || !in_g) continue;
      const bool is_representative =
          !params.q_similarity || params.q_similarity[row * q_blocks + i] > params.sim_threshold;
      if (is_representative) cache_block(params, scores.item, head, i);
    }
  }
}

}  // namespace flashomni::cuda
