// policy_map.cuh -- the map between pooled blocks, and what its rows skip.
//
// A thread block takes kRows query blocks of a head. Their logits are computed once, as sums in
// shared memory; then each of its first warps has a row of them to itself. Few rows where there are
// few blocks, so that all multiprocessors have some; the warps then share the features of a dot
// product. Who does what is worked out, divisions among it, before the kernel that makes the means
// has ended. Loops over a row are unrolled by 2 only: where blocks are few a lane has 2 of them,
// and what is left over after steps of 4 would be done one by one.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/load.cuh"
#include "backend/cuda/device/low_prefix.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

inline constexpr int kFewMapRows = 4, kManyMapRows = 16;
inline constexpr int kMapThreads = 512, kMapWarps = kMapThreads / 32;
inline constexpr int kRowsAtOnce = 4, kFeaturesAtOnce = 16;  // of a warp

// Rounded up to whole warps.
__host__ __device__ constexpr int padded(int blocks) { return (blocks + 31) / 32 * 32; }
// How many warps share the features of 4 rows x 32 columns.
constexpr int map_splits(int rows, int leading) {
  const int units = rows / kRowsAtOnce * (leading / 32);
  return 2 * units <= kMapWarps && units > 0 ? kMapWarps / units : 1;
}
// Shared memory of RowGroup.
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
  int item, head, first_row;
  int kv_head_row;  // over items
  int units;        // of 4 rows x 32 columns
  // What a warp does: every kMapWarps-th unit from the first, of some features.
  int split, first_unit;
  // shared
  float* sums;            // [splits, kRows, leading]: parts of the dot products
  float* queries;         // [kRows, head_dim]
  unsigned char* column;  // [leading] of ColumnFlag

  __device__ RowGroup(const MapParams& map, float* memory)
      : map(map),
        item(blockIdx.z),
        head(blockIdx.y),
        first_row(blockIdx.x * kRows),
        kv_head_row((item * map.num_heads + head) / map.heads_per_kv_head),
        units(map.leading / 32 * (kRows / kRowsAtOnce)),
        sums(memory),
        queries(sums + map.splits * kRows * map.leading),
        column(reinterpret_cast<unsigned char*>(queries + kRows * map.head_dim)) {
    const int warp = threadIdx.x / 32;
    split = map.splits > 1 ? warp / units : 0;
    first_unit = split < map.splits ? warp - split * units : units;
  }

  __device__ std::int64_t head_row() const {
    return static_cast<std::int64_t>(item) * map.num_heads + head;
  }

  __device__ void copy_queries() const {
    const int quarter = map.head_dim / 4, rows = min(kRows, map.q.num_blocks - first_row);
    const int row = (item * map.num_heads + head) * map.q.num_blocks + first_row;
    const float* q = map.q_means + static_cast<std::int64_t>(row) * map.head_dim;
    const auto* from = reinterpret_cast<const float4*>(q);
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * quarter; i += kMapThreads) {
      reinterpret_cast<float4*>(queries)[i] = i < rows * quarter ? from[i] : float4{0, 0, 0, 0};
    }
  }

  // Some features of 32 kv blocks, one a lane; 0 past `end`.
  __device__ void load_keys(float (&keys)[kFeaturesAtOnce], int column_group, int d,
                            int end) const {
    const auto row = static_cast<std::int64_t>(kv_head_row * map.head_dim + d);
    const float* from = map.k_means + row * map.leading + (32 * column_group + threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kFeaturesAtOnce; ++i) {
      keys[i] = load_float_if(d + i / 4 * 4 < end, from);  // by fours, as there are
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
    const int first_dim = split * map.split_dim;
    const int end_dim = min(map.head_dim, first_dim + map.split_dim);
    float keys[kFeaturesAtOnce];
    const auto load = [&](int unit, int d) { load_keys(keys, unit / kParts, d, end_dim); };
    if (first_unit < units) load(first_unit, first_dim);
    bool is_loaded = true;
    copy_queries();
    __syncthreads();
    for (int unit = first_unit; unit < units; unit += kMapWarps) {
      const int row = unit % kParts * kRowsAtOnce;
      float sum[kRowsAtOnce] = {};
      for (int d = first_dim; d < end_dim; d += kFeaturesAtOnce) {
        if (!is_loaded) load(unit, d);
        is_loaded = false;
        add_products(keys, row, d, end_dim, sum);
      }
      float* to =
          sums + (split * kRows + row) * map.leading + unit / kParts * 32 + threadIdx.x % 32;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) to[r * map.leading] = sum[r];
    }
    __syncthreads();
  }

  // From the sums of a row; of an empty kv block anything.
  __device__ float logit(int row, int j) const {
    float sum = 0;
    for (int split = 0; split < map.splits; ++split) {
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
#pragma unroll 2
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & flag) top = fmaxf(top, logits[j]);
    }
    return warp_max(top);
  }

  // The probabilities that C and G read: all of a text row, else those of text columns.
  __device__ void store_probabilities(bool is_text) const {
    const float top = maximum(kValidColumn);
    float sum = 0;
#pragma unroll 2
    for (int j = lane(); j < params.map.leading; j += 32) {
      if (column[j] & kValidColumn) sum += expf(logits[j] - top);
    }
    const float inverse = 1 / warp_sum(sum);
    const int q_blocks = params.map.q.num_blocks;
    float* row = params.text_rows + (head_row * q_blocks + q_block) * params.map.leading;
    float* columns = params.text_columns + head_row * params.map.kv.num_blocks * q_blocks + q_block;
#pragma unroll 2
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
#pragma unroll 2
    for (int j = lane(); j < params.map.leading; j += 32) {
      logits[j] = column[j] & kJudgedColumn ? expf(logits[j] - top) : -1;
    }
    __syncwarp();
    return low_prefix(logits, params.map.leading, params.tau_kv);
  }

  // A head's bit among the cache words of a q block, as if nothing were cached; the first head of a
  // word clears the bits past the last. Other heads change the word at the same time.
  __device__ void store_live(int item, int head, bool is_valid) const {
    const int heads = params.map.num_heads - head / 32 * 32;
    std::uint32_t* word =
        params.cache +
        (static_cast<std::int64_t>(item) * params.map.q.num_blocks + q_block) * params.head_words +
        head / 32;
    const unsigned bit = 1u << (head % 32);
    const unsigned clear = (is_valid ? 0 : bit) | (head % 32 == 0 && heads < 32 ? ~0u << heads : 0);
    if (lane() == 0 && is_valid) atomicOr(word, bit);
    if (lane() == 0 && clear) atomicAnd(word, ~clear);
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

}  // namespace flashomni::cuda
