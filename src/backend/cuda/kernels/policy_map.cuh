// policy_map.cuh -- the map between pooled blocks, and what its rows skip.
//
// A thread block takes kMapRows query blocks of a head. Their logits are computed once, into shared
// memory; then each warp has a row of them to itself.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/low_prefix.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

inline constexpr int kMapRows = 16, kMapThreads = 32 * kMapRows;

// Dynamic shared memory of the kernels below.
constexpr std::size_t map_shared_bytes(int head_dim, int leading) {
  return sizeof(float) * kMapRows * (static_cast<std::size_t>(head_dim) + leading) + leading;
}

// What a kv block is to the head at hand, as bits.
enum ColumnFlag : unsigned char { kValidColumn = 1, kTextColumn = 2, kJudgedColumn = 4 };

struct MapShared {
  float* queries;         // [kMapRows, head_dim]
  float* logits;          // [kMapRows, leading]
  unsigned char* column;  // [leading] of ColumnFlag
  __device__ MapShared(const MapParams& map, float* memory)
      : queries(memory),
        logits(memory + kMapRows * map.head_dim),
        column(reinterpret_cast<unsigned char*>(logits + kMapRows * map.leading)) {}
};

// The logits of rows first_row .. of (item, head); those of empty kv blocks hold anything.
// A warp computes 4 rows of 32 columns at a time; loads of K run 32 features ahead.
__device__ inline void fill_logits(const MapParams& map, int item, int head, int first_row,
                                   const MapShared& shared) {
  constexpr int kRows = 4, kParts = kMapRows / kRows;
  const int lane = threadIdx.x % 32, dim = map.head_dim;
  const std::int64_t head_row = item * map.num_heads + head;
  const int rows = min(kMapRows, map.q.num_blocks - first_row);
  const float* q = map.q_means + (head_row * map.q.num_blocks + first_row) * dim;
  for (int i = threadIdx.x; i < kMapRows * dim; i += kMapThreads) {
    shared.queries[i] = i < rows * dim ? q[i] : 0;
  }
  __syncthreads();

  const int num_kv_heads = map.num_heads / map.heads_per_kv_head;
  const std::int64_t kv_row = item * num_kv_heads + head / map.heads_per_kv_head;
  for (int unit = threadIdx.x / 32; unit < map.leading / 32 * kParts; unit += kMapThreads / 32) {
    const int column = unit / kParts * 32 + lane, row = unit % kParts * kRows;
    const float* __restrict__ k = map.k_means + kv_row * dim * map.leading + column;
    const float* queries = shared.queries + row * dim;
    float sum[kRows] = {};
#pragma unroll 8
    for (int d = 0; d < dim; d += 4) {
      float key[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) key[i] = k[(d + i) * map.leading];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 query = *reinterpret_cast<const float4*>(queries + r * dim + d);
        sum[r] = fmaf(query.x, key[0], sum[r]);
        sum[r] = fmaf(query.y, key[1], sum[r]);
        sum[r] = fmaf(query.z, key[2], sum[r]);
        sum[r] = fmaf(query.w, key[3], sum[r]);
      }
    }
    float bias = 0;
    if (map.log_count_block > 0 && column < map.kv.counts[item].x) {
      const int tokens = map.kv.blocks[item * map.kv.num_blocks + column].y;
      bias = logf(static_cast<float>(tokens) / static_cast<float>(map.log_count_block));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      shared.logits[(row + r) * map.leading + column] = sum[r] * map.scale + bias;
    }
  }
  __syncthreads();
}

// Backend::block_scores: the logits themselves [batch, heads, q_blocks, kv_blocks], 0 in empty
// blocks. Grid (row groups, heads, batch).
__global__ void __launch_bounds__(kMapThreads) logits_kernel(const LogitsParams params) {
  extern __shared__ float4 map_memory[];
  const MapParams& map = params.map;
  const MapShared shared(map, reinterpret_cast<float*>(map_memory));
  const int first_row = blockIdx.x * kMapRows, head = blockIdx.y, item = blockIdx.z;
  fill_logits(map, item, head, first_row, shared);
  const int warp = threadIdx.x / 32, q_block = first_row + warp;
  if (q_block >= map.q.num_blocks) return;
  const bool is_empty = q_block >= map.q.counts[item].x;
  const int valid = map.kv.counts[item].x;
  const std::int64_t head_row = item * map.num_heads + head;
  float* row = params.logits + (head_row * map.q.num_blocks + q_block) * map.kv.num_blocks;
  for (int j = threadIdx.x % 32; j < map.kv.num_blocks; j += 32) {
    row[j] = is_empty || j >= valid ? 0 : shared.logits[warp * map.leading + j];
  }
}

// One row of the map, one warp.
struct MapRow {
  const SelectParams& params;
  float* logits;                // [leading], shared
  const unsigned char* column;  // flags
  int item, head, q_block;

  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ float maximum(unsigned char flag) const {
    float top = -INFINITY;
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & flag) top = fmaxf(top, logits[j]);
    }
    return warp_max(top);
  }

  // The probabilities that C and G read: of a text row all, else those of text columns.
  __device__ void store_probabilities(bool is_text) const {
    const float top = maximum(kValidColumn);
    float sum = 0;
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & kValidColumn) sum += expf(logits[j] - top);
    }
    const float inverse = 1 / warp_sum(sum);
    const std::int64_t head_row = item * params.map.num_heads + head;
    float* to =
        params.probabilities + (head_row * params.map.q.num_blocks + q_block) * params.map.leading;
    for (int j = lane(); j < params.map.leading; j += 32) {
      const bool is_read = is_text || (column[j] & kTextColumn);
      if (is_read && (column[j] & kValidColumn)) to[j] = expf(logits[j] - top) * inverse;
    }
  }

  // The blocks of least mass among the judged ones. Logits become masses that are not normalised.
  __device__ LowPrefix find_low_mass() const {
    const float top = maximum(kJudgedColumn);
    for (int j = lane(); j < params.map.leading; j += 32) {
      logits[j] = column[j] & kJudgedColumn ? expf(logits[j] - top) : -1;
    }
    __syncwarp();
    return low_prefix(logits, params.map.leading, params.tau_kv);
  }

  __device__ void store_words(LowPrefix low, bool skips) const {
    const std::int64_t head_row = item * params.map.num_heads + head;
    std::uint32_t* words =
        params.skip + (head_row * params.map.q.num_blocks + q_block) * params.kv_words;
    const unsigned char kept = params.keep_text_kv ? kTextColumn : 0;
    LowPrefixWalk walk(low);
    for (int w = 0; w < params.kv_words; ++w) {
      const int j = 32 * w + lane();
      const bool is_low = skips && walk.selects(logits[j]);
      const bool is_used = (column[j] & kValidColumn) && (!is_low || (column[j] & kept));
      const unsigned word = __ballot_sync(~0u, is_used);
      if (lane() == 0) words[w] = word;
    }
  }
};

// All heads live where a q block holds tokens.
__device__ inline void store_live_heads(const SelectParams& params, int item, int q_block,
                                        bool is_valid) {
  std::uint32_t* words =
      params.cache +
      (static_cast<std::int64_t>(item) * params.map.q.num_blocks + q_block) * params.head_words;
  for (int w = threadIdx.x % 32; w < params.head_words; w += 32) {
    const int heads = min(32, params.map.num_heads - 32 * w);
    words[w] = is_valid ? ~0u >> (32 - heads) : 0;
  }
}

// Skip words as if nothing were cached, cache words in which nothing is, and the probabilities.
// Grid (row groups, heads, batch).
__global__ void __launch_bounds__(kMapThreads, 2) skip_kernel(const SelectParams params) {
  extern __shared__ float4 map_memory[];
  const MapParams& map = params.map;
  const MapShared shared(map, reinterpret_cast<float*>(map_memory));
  const int first_row = blockIdx.x * kMapRows, head = blockIdx.y, item = blockIdx.z;
  const int kv_blocks = map.kv.num_blocks, num_kv_heads = map.num_heads / map.heads_per_kv_head;
  const std::int64_t kv_row = item * num_kv_heads + head / map.heads_per_kv_head;
  for (int j = threadIdx.x; j < map.leading; j += kMapThreads) {
    unsigned char flags = 0;
    if (j < map.kv.counts[item].x) {
      const bool is_judged = !params.k_similarity ||
                             params.k_similarity[kv_row * kv_blocks + j] > params.sim_threshold;
      flags = kValidColumn | (map.kv.blocks[item * kv_blocks + j].z ? kTextColumn : 0) |
              (is_judged ? kJudgedColumn : 0);
    }
    shared.column[j] = flags;
  }
  fill_logits(map, item, head, first_row, shared);

  const int warp = threadIdx.x / 32, q_block = first_row + warp;
  if (q_block >= map.q.num_blocks) return;
  const int4 block = map.q.blocks[item * map.q.num_blocks + q_block];
  const bool is_valid = block.y > 0, is_text = block.z != 0;
  if (head == 0) store_live_heads(params, item, q_block, is_valid);
  const MapRow row{params, shared.logits + warp * map.leading, shared.column, item, head, q_block};
  if (!is_valid) {
    const std::int64_t head_row = item * map.num_heads + head;
    std::uint32_t* words = params.skip + (head_row * map.q.num_blocks + q_block) * params.kv_words;
    for (int w = threadIdx.x % 32; w < params.kv_words; w += 32) words[w] = 0;
    return;
  }
  if (params.probabilities) row.store_probabilities(is_text);
  const std::int64_t q_row = item * map.num_heads + head;
  const bool is_representative =
      !params.q_similarity ||
      params.q_similarity[q_row * map.q.num_blocks + q_block] > params.sim_threshold;
  const bool skips = !is_text && is_representative && params.tau_kv > 0;
  row.store_words(skips ? row.find_low_mass() : LowPrefix{}, skips);
}

}  // namespace flashomni::cuda
