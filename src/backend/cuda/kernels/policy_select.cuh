// policy_select.cuh -- the symbols of a layer, from the means of its blocks.
//
// A thread block takes kRows query blocks of a head: first the probabilities by which query blocks
// are cached, then what they skip. The last thread block of a head to write the former, or with
// scope `layer` of an item, finds the cached query blocks while the others write words, and takes
// them out of all words once these are there. Waiting is safe: those it waits for are running.
// Tables, which no kernel writes, are read before the kernel that makes the means has ended.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/arrival.cuh"
#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/kernels/policy_cache.cuh"
#include "backend/cuda/kernels/policy_map.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

// Cache and skip words, and scores where wanted. Grid (row groups, heads, batch).
template <int kRows>
__global__ void __launch_bounds__(kMapThreads, 2) select_kernel(const SelectParams params) {
  extern __shared__ float4 select_memory[];
  __shared__ bool is_last;
  const MapParams& map = params.map;
  const RowGroup<kRows> group(map, reinterpret_cast<float*>(select_memory));
  const int item = group.item, head = group.head;
  const CacheScores scores(params, item, group.column + map.leading);
  release_next_kernel();
  const int own_row = threadIdx.x / 32, q_block = group.first_row + own_row;
  const bool has_row = own_row < kRows && q_block < map.q.num_blocks;
  scores.read_tables();
#pragma unroll 1
  for (int j = threadIdx.x; j < map.leading; j += kMapThreads) {
    const bool is_valid = j < map.kv.counts[item].x;
    const bool is_text = is_valid && scores.columns[j].tokens == 0;
    group.column[j] = (is_valid ? kValidColumn | kJudgedColumn : 0) | (is_text ? kTextColumn : 0);
  }
  await_previous_kernel();
  if (params.k_similarity) {
    const auto first = static_cast<std::int64_t>(group.kv_head_row) * map.kv.num_blocks;
    const float* similarity = params.k_similarity + first;
#pragma unroll 1
    for (int j = threadIdx.x; j < map.kv.num_blocks; j += kMapThreads) {
      if (!(similarity[j] > params.sim_threshold)) group.column[j] &= ~kJudgedColumn;
    }
  }
  group.fill();

  const bool is_valid = has_row && q_block < scores.q_counts->x;
  const bool is_text = is_valid && scores.rows[q_block].tokens == 0;
  const MapRow row{params, group.sums + own_row * map.leading, group.column, group.head_row(),
                   q_block};
  if (has_row) row.store_live(item, head, is_valid);
  if (is_valid) {
#pragma unroll 1
    for (int j = threadIdx.x % 32; j < map.leading; j += 32) {
      row.logits[j] = group.logit(own_row, j);
    }
    if (params.text_rows) row.store_probabilities(is_text);
  }

  const HeadRange heads =
      params.per_layer ? HeadRange{0, map.num_heads} : HeadRange{head, head + 1};
  const int others = static_cast<int>(gridDim.x) * (heads.end - heads.first) - 1;
  SelectCounters* counters =
      params.counters + (params.per_layer ? item : item * map.num_heads + head);
  if (params.text_rows) {
    __syncthreads();
    // Of a warp that has no row where rows are few: the answer takes as long as a low prefix.
    if (threadIdx.x == kMapThreads - 1) is_last = count_arrival(&counters->probabilities) == others;
  }
  if (is_valid) {
    const bool is_representative =
        !params.q_similarity ||
        params.q_similarity[group.head_row() * map.q.num_blocks + q_block] > params.sim_threshold;
    const bool skips = !is_text && is_representative && params.tau_kv > 0;
    row.store_words(skips ? row.find_low_mass() : LowPrefix{}, skips);
  } else if (has_row) {
    row.clear_words();
  }
  if (!params.text_rows) return;
  __syncthreads();
  if (is_last) return clear_cached(scores, heads, *counters, others);
  if (threadIdx.x == 0) announce_arrival(&counters->words);
}

}  // namespace flashomni::cuda
