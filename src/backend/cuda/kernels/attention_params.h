// attention_params.h -- what the attention kernel is told; built by attention.cu.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>          // CUtensorMap
#include <cuda_runtime.h>  // int2, float4

#include <cstdint>

#include "backend/cuda/kernels/attention_piece.h"

namespace flashomni::cuda {

// Partial results of a split query block: per warp and lane the accumulators as the MMA holds them,
// and the statistics of its two rows.
template <int kHeadDim>
struct AttentionPartial {
  float4 o[8][kHeadDim / 8][32];
  float4 rows[8][32];  // reference (two rows), sum (two rows)
};

inline constexpr int kMostReuseTerms = 3;
struct AttentionReuseTerm {  // [batch, rows, heads, head_dim], strides in elements, multiples of 4
  const void* data;
  std::int64_t batch_stride, row_stride, head_stride;
};
// What cached rows become; num_blocks == 0: they are not written.
struct AttentionReuseParams {
  const CachedRows* blocks;
  int num_blocks;  // at most: one of no rows ends the list
  int num_terms;
  bool terms_are_f32;  // else they have the dtype of the operands
  AttentionReuseTerm terms[kMostReuseTerms];
  float coefficients[kMostReuseTerms];
};

// Every pointer is device memory.
struct AttentionParams {
  CUtensorMap q_map;           // [batch, rows, heads, head_dim], box of 128 rows x 64 columns
  CUtensorMap k_map, v_map;    // likewise; box of one group of rows x 64 columns
  const CUtensorMap* kv_maps;  // [batch, 2] K and V maps that end at the item's length, or nullptr

  const AttentionPiece* pieces;
  const AttentionStart* starts;  // [blocks]
  const std::int32_t* kv_blocks;
  const int2* kv_table;  // [batch, num_kv_blocks]: first token and token count of a block
  // Parts of an item that are done, [slots, 8 warps]; zeros before the first launch, and again
  // after each.
  int* counters;
  void* partials;  // AttentionPartial [slots]
  int num_kv_blocks;
  int log2_group_rows;        // rows that one TMA load of K or V covers, 16 .. 128
  int log2_groups_per_block;  // groups of a full kv block
  int heads_per_kv_head;

  void* out;  // [batch, rows, heads, head_dim], strides in elements, rows 16-byte aligned
  std::int64_t out_batch_stride, out_row_stride, out_head_stride;
  float* lse;  // [batch, num_heads, num_rows] natural log, or nullptr
  std::int64_t lse_batch_stride, lse_head_stride, lse_row_stride;
  AttentionReuseParams reuse;
  float scale_log2;  // softmax scale times log2(e); positive
};

}  // namespace flashomni::cuda
