// policy_cache.cuh -- which image blocks are cached: C and G from the probabilities that
// skip_kernel left, and the selection by both. Formulas: src/policy/guidance.cpp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/low_prefix.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

inline constexpr int kCacheThreads = 256;

// Dynamic shared memory of cache_kernel.
constexpr std::size_t cache_shared_bytes(int q_blocks, int kv_blocks) {
  return sizeof(float) * (2 * static_cast<std::size_t>(q_blocks) + 3 * kv_blocks);
}

// One item, all threads of a block together.
struct CacheScores {
  const SelectParams& params;
  int item;
  // Shared. Per q block the sums of C and G; per kv block what text rows see of it if it is image,
  // and for the softmax down the column if it is text.
  float *c, *g;                               // [q_blocks]
  float *seen, *column_top, *column_inverse;  // [kv_blocks]

  __device__ CacheScores(const SelectParams& params, int item, float* memory)
      : params(params),
        item(item),
        c(memory),
        g(c + params.map.q.num_blocks),
        seen(g + params.map.q.num_blocks),
        column_top(seen + params.map.kv.num_blocks),
        column_inverse(column_top + params.map.kv.num_blocks) {}

  __device__ int4 q_block(int i) const {
    return params.map.q.blocks[item * params.map.q.num_blocks + i];
  }
  __device__ int4 kv_block(int j) const {
    return params.map.kv.blocks[item * params.map.kv.num_blocks + j];
  }
  __device__ int2 q_counts() const { return params.map.q.counts[item]; }
  __device__ int2 kv_counts() const { return params.map.kv.counts[item]; }
  __device__ const float* probabilities(int head, int i) const {
    const std::int64_t row = static_cast<std::int64_t>(item) * params.map.num_heads + head;
    return params.probabilities + (row * params.map.q.num_blocks + i) * params.map.leading;
  }
  // Else C and G are 0.
  __device__ bool has_scores() const {
    return q_counts().y > 0 && q_counts().y < q_counts().x && kv_counts().x > 0;
  }

  __device__ void summarise_columns(int head) const {
    const int* text_rows = params.map.q.text + item * params.map.q.num_blocks;
    for (int j = threadIdx.x; j < kv_counts().x; j += kCacheThreads) {
      float sum = 0;
      for (int i = 0; i < q_counts().y; ++i) sum += probabilities(head, text_rows[i])[j];
      seen[j] = sum;
    }
    const int* text_columns = params.map.kv.text + item * params.map.kv.num_blocks;
    const int lane = threadIdx.x % 32;
    for (int t = threadIdx.x / 32; t < kv_counts().y; t += kCacheThreads / 32) {
      const int j = text_columns[t];
      float top = 0, sum = 0;
      for (int i = lane; i < q_counts().x; i += 32) {
        if (!q_block(i).z) top = fmaxf(top, probabilities(head, i)[j]);
      }
      top = warp_max(top);
      for (int i = lane; i < q_counts().x; i += 32) {
        if (!q_block(i).z) sum += expf(probabilities(head, i)[j] - top);
      }
      sum = warp_sum(sum);
      if (lane > 0) continue;
      column_top[j] = top;
      column_inverse[j] = 1 / sum;
    }
    __syncthreads();
  }

  // A kv block's mass is shared out over the q blocks that its tokens belong to.
  __device__ float contribution(int4 q) const {
    float sum = 0;
    for (int j = q.w; j < kv_counts().x; ++j) {
      const int4 kv = kv_block(j);
      if (kv.x >= q.x + q.y) break;
      const int overlap = min(q.x + q.y, kv.x + kv.y) - max(q.x, kv.x);
      if (kv.z || overlap <= 0) continue;
      sum += seen[j] * static_cast<float>(overlap) / static_cast<float>(kv.y);
    }
    return sum;
  }
  __device__ float guidance(int head, int i) const {
    const int* text_columns = params.map.kv.text + item * params.map.kv.num_blocks;
    float sum = 0;
    for (int t = 0; t < kv_counts().y; ++t) {
      const int j = text_columns[t];
      sum += expf(probabilities(head, i)[j] - column_top[j]) * column_inverse[j];
    }
    return sum;
  }

  // Adds those of one head; writes them down if it is `own`.
  __device__ void add_head(int head, bool own) const {
    const bool has = has_scores();
    if (has) summarise_columns(head);
    const int q_blocks = params.map.q.num_blocks;
    const std::int64_t row = static_cast<std::int64_t>(item) * params.map.num_heads + head;
    for (int i = threadIdx.x; i < q_blocks; i += kCacheThreads) {
      const int4 q = q_block(i);
      const bool is_image = has && q.y > 0 && !q.z;
      const float its_c = is_image ? contribution(q) : 0;
      const float its_g = is_image ? guidance(head, i) : 0;
      if (own && params.c) params.c[row * q_blocks + i] = its_c;
      if (own && params.g) params.g[row * q_blocks + i] = its_g;
      c[i] += its_c;
      g[i] += its_g;
    }
    __syncthreads();
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

// Clears the symbols of cached blocks. Grid (heads, batch).
__global__ void __launch_bounds__(kCacheThreads) cache_kernel(const SelectParams params) {
  extern __shared__ float4 cache_memory[];
  __shared__ LowPrefix low[2];
  const int own = blockIdx.x, item = blockIdx.y, q_blocks = params.map.q.num_blocks;
  const CacheScores scores(params, item, reinterpret_cast<float*>(cache_memory));
  for (int i = threadIdx.x; i < q_blocks; i += kCacheThreads) scores.c[i] = scores.g[i] = 0;
  __syncthreads();
  const int first = params.per_layer ? 0 : own;
  const int end = params.per_layer ? params.map.num_heads : own + 1;
  for (int head = first; head < end; ++head) scores.add_head(head, head == own);
  if (scores.q_counts().y == 0) return;

  for (int i = threadIdx.x; i < q_blocks; i += kCacheThreads) {
    const int4 q = scores.q_block(i);
    if (q.y == 0 || q.z) scores.c[i] = scores.g[i] = -1;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp < 2) {
    const LowPrefix found = low_prefix(warp ? scores.g : scores.c, q_blocks, params.tau_q);
    if (threadIdx.x % 32 == 0) low[warp] = found;
  }
  __syncthreads();
  if (warp > 0) return;
  LowPrefixWalk low_c(low[0]), low_g(low[1]);
  const std::int64_t row = static_cast<std::int64_t>(item) * params.map.num_heads + own;
  for (int begin = 0; begin < q_blocks; begin += 32) {
    const int i = begin + threadIdx.x;
    const bool in_c = low_c.selects(i < q_blocks ? scores.c[i] : -1);
    const bool in_g = low_g.selects(i < q_blocks ? scores.g[i] : -1);
    if (!in_c || !in_g) continue;
    const bool is_representative =
        !params.q_similarity || params.q_similarity[row * q_blocks + i] > params.sim_threshold;
    if (is_representative) cache_block(params, item, own, i);
  }
}

}  // namespace flashomni::cuda
