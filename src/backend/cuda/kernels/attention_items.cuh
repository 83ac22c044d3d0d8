// attention_items.cuh -- from symbols to the lists of build_attention_plan (src/plan): live rows,
// and the kv blocks of each. Thread blocks are (head, batch).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/block_scan.cuh"
#include "backend/cuda/kernels/attention_lists_params.h"

namespace flashomni::cuda {

inline constexpr int kListThreads = 256, kItemThreads = 1024;

// Dynamic shared memory of list_items_kernel.
constexpr std::size_t list_shared_bytes(int q_blocks) {
  // Even, because ptxas reads four values where up to three are left.
  return 2 * sizeof(int) * static_cast<std::size_t>(q_blocks + q_blocks % 2);
}

__device__ inline const std::uint32_t* skip_row(const AttentionListsParams& params, int group,
                                                int q_block) {
  return params.skip +
         (static_cast<std::int64_t>(group) * params.q.num_blocks + q_block) * params.kv_words;
}

// The sums of a block of kThreads.
template <int kThreads>
__device__ GroupTotals sum_block(const GroupTotals& mine, int* scratch) {
  const int items = block_scan<kThreads>(mine.items, Sum{}, scratch).all;
  const int pairs = block_scan<kThreads>(mine.pairs, Sum{}, scratch).all;
  const int units = block_scan<kThreads>(mine.units, Sum{}, scratch).all;
  const int cached = block_scan<kThreads>(mine.cached, Sum{}, scratch).all;
  return {items, pairs, units, cached};
}

// kv blocks of every row, and their sums over a group.
__global__ void __launch_bounds__(kListThreads)
    count_rows_kernel(const AttentionListsParams params) {
  __shared__ int scratch[kListThreads / 32];
  release_next_kernel();
  await_previous_kernel();
  const int head = blockIdx.x, item = blockIdx.y, group = item * params.num_heads + head;
  const int q_blocks = params.q.num_blocks;
  GroupTotals mine{};
  for (int q = threadIdx.x; q < q_blocks; q += kListThreads) {
    const std::int64_t row = static_cast<std::int64_t>(item) * q_blocks + q;
    const bool is_live = params.cache[row * params.head_words + head / 32] >> head % 32 & 1;
    int count = 0;
    const std::uint32_t* words = skip_row(params, group, q);
    for (int w = 0; w < params.kv_words; ++w) count += __popc(words[w]);
    const int left_out = params.q.blocks[item * q_blocks + q].y > 0 ? kCachedRow : kEmptyRow;
    params.counts[static_cast<std::int64_t>(group) * q_blocks + q] = is_live ? count : left_out;
    mine.cached += !is_live && left_out == kCachedRow;
    if (!is_live) continue;
    const int per_unit = params.options.blocks_per_unit;
    mine.items += 1;
    mine.pairs += count;
    mine.units += (count + per_unit - 1) / per_unit;
  }
  const GroupTotals totals = sum_block<kListThreads>(mine, scratch);
  if (threadIdx.x == 0) params.totals[group] = totals;
}

// The sums over groups [0, end).
template <int kThreads>
__device__ GroupTotals sum_groups(const GroupTotals* totals, int end, int* scratch) {
  GroupTotals mine{};
  for (int g = threadIdx.x; g < end; g += kThreads) {
    mine.items += totals[g].items;
    mine.pairs += totals[g].pairs;
    mine.units += totals[g].units;
    mine.cached += totals[g].cached;
  }
  return sum_block<kThreads>(mine, scratch);
}

// How many rows go before row q: longer ones, and equal ones of lower index.
__device__ inline int rank_row(const int* counts, int q_blocks, int q) {
  const int own = counts[q];
  int rank = 0;
  for (int other = 0; other < q_blocks; ++other) {
    rank += counts[other] > own || (counts[other] == own && other < q);
  }
  return rank;
}

// Lists the cached blocks of a group, behind those of the groups before, and as many blocks of no
// rows at the end of the list as the group has others. `counts` in shared memory.
__device__ inline void list_cached_rows(const AttentionListsParams& params, const int* counts,
                                        int before, int* scratch) {
  const int q_blocks = params.q.num_blocks, num_groups = params.batch * params.num_heads;
  const int head = blockIdx.x, item = blockIdx.y, group = item * params.num_heads + head;
  const int all = sum_groups<kItemThreads>(params.totals, num_groups, scratch).cached;
  const std::int64_t others_before = static_cast<std::int64_t>(group) * q_blocks - before;
  int next = 0;  // cached blocks of the group so far
  for (int begin = 0; begin < q_blocks; begin += kItemThreads) {
    const int q = begin + threadIdx.x;
    const bool is_cached = q < q_blocks && counts[q] == kCachedRow;
    const auto cached = block_scan<kItemThreads>(static_cast<int>(is_cached), Sum{}, scratch);
    const int rank = next + cached.before;
    next += cached.all;
    if (is_cached) {
      const int4 block = params.q.blocks[item * q_blocks + q];
      params.cached[before + rank] = {item, head, block.x, block.y};
    } else if (q < q_blocks) {
      params.cached[all + others_before + q - rank] = {0, 0, 0, 0};
    }
  }
}

// Items of a group, long ones first, the kv lists in the order of the rows, and what is cached.
__global__ void __launch_bounds__(kItemThreads)
    list_items_kernel(const AttentionListsParams params) {
  extern __shared__ float4 list_memory[];
  __shared__ int scratch[kItemThreads / 32];
  release_next_kernel();
  await_previous_kernel();
  const int q_blocks = params.q.num_blocks;
  int* counts = reinterpret_cast<int*>(list_memory);  // [q_blocks]
  int* first = counts + q_blocks;                     // [q_blocks]: where the kv list begins
  const int head = blockIdx.x, item = blockIdx.y, group = item * params.num_heads + head;
  const GroupTotals before = sum_groups<kItemThreads>(params.totals, group, scratch);
  int next = before.pairs;
  for (int begin = 0; begin < q_blocks; begin += kItemThreads) {
    const int q = begin + threadIdx.x;
    const int count =
        q < q_blocks ? params.counts[static_cast<std::int64_t>(group) * q_blocks + q] : 0;
    const auto pairs = block_scan<kItemThreads>(max(count, 0), Sum{}, scratch);
    if (q < q_blocks) {
      counts[q] = count;
      first[q] = next + pairs.before;
    }
    next += pairs.all;
  }
  __syncthreads();

  for (int q = threadIdx.x; q < q_blocks; q += kItemThreads) {
    if (counts[q] < 0) continue;
    params.items[before.items + rank_row(counts, q_blocks, q)] = {item, head, q, first[q],
                                                                  counts[q]};
  }
  list_cached_rows(params, counts, before.cached, scratch);
  const int lane = threadIdx.x % 32;
  for (int q = threadIdx.x / 32; q < q_blocks; q += kItemThreads / 32) {
    const std::uint32_t* words = skip_row(params, group, q);
    std::int32_t* to = params.kv_blocks + first[q];
    for (int begin = 0; begin < params.kv_words && counts[q] > 0; begin += 32) {
      const std::uint32_t mine = begin + lane < params.kv_words ? words[begin + lane] : 0;
      for (int w = 0; w < min(32, params.kv_words - begin); ++w) {
        const std::uint32_t word = __shfl_sync(~0u, mine, w);
        const std::uint32_t below = word & ((1u << lane) - 1);
        if (word >> lane & 1) to[__popc(below)] = 32 * (begin + w) + lane;
        to += __popc(word);
      }
    }
  }
}

}  // namespace flashomni::cuda
