// policy_params.h -- what the kernels that choose symbols are told; built by policy.cu.
//
// Every pointer is device memory. Everything is fp32 but Q and K themselves.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>  // int2, int4

#include <cstdint>

namespace flashomni::cuda {

// A BlockGrid. Blocks with valid tokens come first in an item.
struct GridTable {
  const int4* blocks;  // [batch, num_blocks] of {first token, tokens, is text, see below}; of a q
                       // grid the last is the kv block that holds the first token
  const int* text;     // [batch, num_blocks]: indices of the valid text blocks of an item
  const int2* counts;  // [batch]: {valid blocks, valid text blocks}
  int num_blocks;
};

// Q or K, [batch, tokens, heads, head_dim], to be pooled; strides in elements.
struct PoolInput {
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;
  int num_heads;
  GridTable grid;
  const float* subtract;  // [batch, heads, head_dim], taken off every token; or nullptr
  // Means: element d of block b of (item, head) i is at i * head + b * block + d * dim.
  float* means;
  std::int64_t mean_head, mean_block, mean_dim;
  float* similarity;  // [batch, heads, num_blocks], or nullptr
};

struct PoolParams {
  PoolInput q, k;  // num_blocks of a grid is 0 where there is nothing to do
  int head_dim;
  int log2_row_threads;  // threads that share a row, each 16 bytes of it
};

// The map between pooled blocks.
struct MapParams {
  const float* q_means;  // [batch, num_heads, q_blocks, head_dim]
  const float* k_means;  // [batch, num_kv_heads, head_dim, leading]
  GridTable q, kv;
  int num_heads, heads_per_kv_head, head_dim;
  int leading;  // kv blocks, padded to a multiple of 32
  float scale;
  int log_count_block;  // adds log(count / this) to the logits of kv blocks; 0: does not
  int splits;  // how many warps share the features of 4 rows x 32 columns, and how many a warp has
  int split_dim;
};

struct LogitsParams {
  MapParams map;
  float* logits;  // [batch, num_heads, q_blocks, kv_blocks]
};

// How many thread blocks have written what the last of them goes on with; 0 between launches.
struct SelectCounters {
  int probabilities, words;
};

struct SelectParams {
  MapParams map;
  const float* q_similarity;  // [batch, num_heads, q_blocks], or nullptr: no gate
  const float* k_similarity;  // [batch, num_kv_heads, kv_blocks], likewise
  double sim_threshold;
  float tau_q, tau_kv;
  int keep_text_kv;
  int per_layer;  // scores are summed over the heads
  // What C and G read: the probabilities of text rows [batch, num_heads, q_blocks, leading], and
  // exp of those that other rows give to text columns [batch, num_heads, kv_blocks, q_blocks]. The
  // rest is not defined. nullptr: nothing is cached, no scores are wanted.
  float *text_rows, *text_columns;
  SelectCounters* counters;  // [batch, num_heads]; [batch] where per_layer
  std::uint32_t* cache;      // [batch, q_blocks, head_words]
  std::uint32_t* skip;       // [batch, num_heads, q_blocks, kv_words]
  int head_words, kv_words;
  float *c, *g;  // [batch, num_heads, q_blocks] or nullptr
};

}  // namespace flashomni::cuda
