// policy_map.cuh -- the map between pooled blocks, and what its rows skip.
//
// A thread block takes kRows query blocks of a head. Their logits are computed once, as sums in
// shared memory; then each of its first warps has a row of them to itself. Few rows where there are
// few blocks, so that all multiprocessors have some; the warps then share the features of a dot
// product. What does not depend on the means is read before the kernel that makes them has ended.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/low_prefix.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

inline constexpr int kFewMapRows = 4, kManyMapRows = 16;
inline constexpr int kMapThreads = 512, kMapWarps = kMapThreads / 32;
inline constexpr int kRowsAtOnce = 4, kFeaturesAtOnce = 16;  // of a warp

// How many warps share the features of 4 rows x 32 columns.
__host__ __device__ constexpr int map_splits(int rows, int leading) {
  const int units = rows / kRowsAtOnce * (leading / 32);
  return 2 * units <= kMapWarps && units > 0 ? kMapWarps / units : 1;
}
// Dynamic shared memory of the kernels below.
constexpr std::size_t map_shared_bytes(int rows, int head_dim, int leading) {
  const std::size_t sums = static_cast<std::size_t>(map_splits(rows, leading)) * leading;
  return sizeof(float) * rows * (head_dim + sums) + leading;
}

// What a kv block is to the head at hand, as bits.
enum ColumnFlag : unsigned char { kValidColumn = 1, kTextColumn = 2, kJudgedColumn = 4 };

// Some rows of the map of a head.
template <int kRows>
struct RowGroup {
  const MapParams& map;
  int item, head, first_row, splits;
  // shared
  float* queries;         // [kRows, head_dim]
  float* sums;            // [splits, kRows, leading]: parts of the dot products
  unsigned char* column;  // [leading] of ColumnFlag

  __device__ RowGroup(const MapParams& map, float* memory)
      : map(map),
        item(blockIdx.z),
        head(blockIdx.y),
        first_row(blockIdx.x * kRows),
        splits(map_splits(kRows, map.leading)),
        queries(memory),
        sums(queries + kRows * map.head_dim),
        column(reinterpret_cast<unsigned char*>(sums + splits * kRows * map.leading)) {}

  __device__ std::int64_t head_row() const {
    return static_cast<std::int64_t>(item) * map.num_heads + head;
  }
  __device__ std::int64_t kv_head_row() const {
    return static_cast<std::int64_t>(item) * (map.num_heads / map.heads_per_kv_head) +
           head / map.heads_per_kv_head;
  }

  __device__ void copy_queries() const {
    const int dim = map.head_dim, rows = min(kRows, map.q.num_blocks - first_row);
    const float* q = map.q_means + (head_row() * map.q.num_blocks + first_row) * dim;
    const auto* from = reinterpret_cast<const float4*>(q);
    for (int i = threadIdx.x; i < kRows * dim / 4; i += kMapThreads) {
      reinterpret_cast<float4*>(queries)[i] = i < rows * dim / 4 ? from[i] : float4{0, 0, 0, 0};
    }
  }

  // Some features of 32 kv blocks, one a lane; 0 past `end`.
  __device__ void load_keys(float (&keys)[kFeaturesAtOnce], int column_group, int d,
                            int end) const {
    const float* from = map.k_means + (kv_head_row() * map.head_dim + d) * map.leading +
                        32 * column_group + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kFeaturesAtOnce; ++i) {
      keys[i] = d + i / 4 * 4 < end ? *from : 0;  // by fours, as there are
      from += map.leading;
    }
  }

  __device__ void add_products(const float (&keys)[kFeaturesAtOnce], int row, int d, int end,
                               float (&sum)[kRowsAtOnce]) const {
#pragma unroll
    for (int i = 0; i < kFeaturesAtOnce; i += 4) {
      if (d + i >= end) break;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const float* from = queries + (row + r) * map.head_dim + d + i;
        const float4 query = *reinterpret_cast<const float4*>(from);
        sum[r] = fmaf(query.x, keys[i], sum[r]);
        sum[r] = fmaf(query.y, keys[i + 1], sum[r]);
        sum[r] = fmaf(query.z, keys[i + 2], sum[r]);
        sum[r] = fmaf(query.w, keys[i + 3], sum[r]);
      }
    }
  }

  // Fills `sums`. A warp computes 4 rows of 32 columns at a time, of 16 features that it loads
  // together; the first of them while the queries arrive.
  __device__ void fill() const {
    constexpr int kParts = kRows / kRowsAtOnce;
    const int dim = map.head_dim, units = map.leading / 32 * kParts;
    const int share = (dim / 4 + splits - 1) / splits * 4;
    const int own = threadIdx.x / 32;
    float keys[kFeaturesAtOnce];
    const auto load = [&](int unit, int d, int end) {
      load_keys(keys, unit % units / kParts, d, end);
    };
    const auto first_of = [&](int unit) { return unit / units * share; };
    const auto end_of = [&](int unit) { return min(dim, first_of(unit) + share); };
    if (own < units * splits) load(own, first_of(own), end_of(own));
    copy_queries();
    __syncthreads();
    for (int unit = own; unit < units * splits; unit += kMapWarps) {
      const int row = unit % kParts * kRowsAtOnce, first = first_of(unit), end = end_of(unit);
      float sum[kRowsAtOnce] = {};
      for (int d = first; d < end; d += kFeaturesAtOnce) {
        if (unit != own || d != first) load(unit, d, end);
        add_products(keys, row, d, end, sum);
      }
      float* to = sums + (unit / units * kRows + row) * map.leading + unit % units / kParts * 32 +
                  threadIdx.x % 32;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) to[r * map.leading] = sum[r];
    }
    __syncthreads();
  }

  // From the sums of a row; of an empty kv block anything.
  __device__ float logit(int row, int j) const {
    float sum = 0;
    for (int split = 0; split < splits; ++split) {
      sum += sums[(split * kRows + row) * map.leading + j];
    }
    float bias = 0;
    if (map.log_count_block > 0 && j < map.kv.counts[item].x) {
      const int tokens = map.kv.blocks[item * map.kv.num_blocks + j].y;
      bias = logf(static_cast<float>(tokens) / static_cast<float>(map.log_count_block));
    }
    return sum * map.scale + bias;
  }
};

// Backend::block_scores: the logits themselves [batch, heads, q_blocks, kv_blocks], 0 in empty
// blocks. Grid (row groups, heads, batch).
template <int kRows>
__global__ void __launch_bounds__(kMapThreads) logits_kernel(const LogitsParams params) {
  extern __shared__ float4 map_memory[];
  const MapParams& map = params.map;
  const RowGroup<kRows> group(map, reinterpret_cast<float*>(map_memory));
  release_next_kernel();
  await_previous_kernel();
  group.fill();
  const int warp = threadIdx.x / 32, q_block = group.first_row + warp;
  if (warp >= kRows || q_block >= map.q.num_blocks) return;
  const bool is_empty = q_block >= map.q.counts[group.item].x;
  const int valid = map.kv.counts[group.item].x;
  float* row = params.logits + (group.head_row() * map.q.num_blocks + q_block) * map.kv.num_blocks;
  for (int j = threadIdx.x % 32; j < map.kv.num_blocks; j += 32) {
    row[j] = is_empty || j >= valid ? 0 : group.logit(warp, j);
  }
}

// One row of the map, one warp.
struct MapRow {
  const SelectParams& params;
  float* logits;                // [leading], shared
  const unsigned char* column;  // flags
  std::int64_t head_row;
  int q_block;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ float maximum(unsigned char flag) const {
    float top = -INFINITY;
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & flag) top = fmaxf(top, logits[j]);
    }
    return warp_max(top);
  }

  // The probabilities that C and G read: all of a text row, else those of text columns.
  __device__ void store_probabilities(bool is_text) const {
    const float top = maximum(kValidColumn);
    float sum = 0;
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & kValidColumn) sum += expf(logits[j] - top);
    }
    const float inverse = 1 / warp_sum(sum);
    const int q_blocks = params.map.q.num_blocks;
    float* row = params.text_rows + (head_row * q_blocks + q_block) * params.map.leading;
    float* columns = params.text_columns + head_row * params.map.kv.num_blocks * q_blocks + q_block;
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (!(column[j] & (is_text ? kValidColumn : kTextColumn))) continue;
      const float probability = expf(logits[j] - top) * inverse;
      if (is_text) {
        row[j] = probability;
      } else {
        columns[static_cast<std::int64_t>(j) * q_blocks] = expf(probability);
      }
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

  __device__ std::uint32_t* words() const {
    return params.skip + (head_row * params.map.q.num_blocks + q_block) * params.kv_words;
  }
  __device__ void clear_words() const {
    for (int w = lane(); w < params.kv_words; w += 32) words()[w] = 0;
  }
  __device__ void store_words(LowPrefix low, bool skips) const {
    const unsigned char kept = params.keep_text_kv ? kTextColumn : 0;
    LowPrefixWalk walk(low);
    for (int w = 0; w < params.kv_words; ++w) {
      const int j = 32 * w + lane();
      const bool is_low = skips && walk.selects(logits[j]);
      const bool is_used = (column[j] & kValidColumn) && (!is_low || (column[j] & kept));
      const unsigned word = __ballot_sync(~0u, is_used);
      if (lane() == 0) words()[w] = word;
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
template <int kRows>
__global__ void __launch_bounds__(kMapThreads, 2) skip_kernel(const SelectParams params) {
  extern __shared__ float4 map_memory[];
  const MapParams& map = params.map;
  const RowGroup<kRows> group(map, reinterpret_cast<float*>(map_memory));
  const int item = group.item;
  release_next_kernel();
  const int own_row = threadIdx.x / 32, q_block = group.first_row + own_row;
  const bool has_row = own_row < kRows && q_block < map.q.num_blocks;
  const int4 block = has_row ? map.q.blocks[item * map.q.num_blocks + q_block] : int4{};
  for (int j = threadIdx.x; j < map.leading; j += kMapThreads) {
    const bool is_valid = j < map.kv.counts[item].x;
    const bool is_text = is_valid && map.kv.blocks[item * map.kv.num_blocks + j].z;
    group.column[j] = (is_valid ? kValidColumn | kJudgedColumn : 0) | (is_text ? kTextColumn : 0);
  }
  await_previous_kernel();
  if (params.k_similarity) {
    const float* similarity = params.k_similarity + group.kv_head_row() * map.kv.num_blocks;
    for (int j = threadIdx.x; j < map.kv.num_blocks; j += kMapThreads) {
      if (!(similarity[j] > params.sim_threshold)) group.column[j] &= ~kJudgedColumn;
    }
  }
  group.fill();

  if (!has_row) return;
  const bool is_valid = block.y > 0, is_text = block.z != 0;
  if (group.head == 0) store_live_heads(params, item, q_block, is_valid);
  const MapRow row{params, group.sums + own_row * map.leading, group.column, group.head_row(),
                   q_block};
  if (!is_valid) return row.clear_words();
  for (int j = threadIdx.x % 32; j < map.leading; j += 32) row.logits[j] = group.logit(own_row, j);
  if (params.text_rows) row.store_probabilities(is_text);
  const bool is_representative =
      !params.q_similarity ||
      params.q_similarity[group.head_row() * map.q.num_blocks + q_block] > params.sim_threshold;
  const bool skips = !is_text && is_representative && params.tau_kv > 0;
  row.store_words(skips ? row.find_low_mass() : LowPrefix{}, skips);
}

}  // namespace flashomni::cuda
