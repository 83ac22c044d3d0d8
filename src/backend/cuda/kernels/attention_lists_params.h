// attention_lists_params.h -- what the kernels that turn symbols into pieces of attention are told;
// built by attention_lists.cu.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>  // int2

#include <cstdint>

#include "backend/cuda/kernels/attention_piece.h"
#include "backend/cuda/kernels/policy_params.h"  // GridTable

namespace flashomni::cuda {

inline constexpr int kMostMultiprocessors = 256, kMostSortedPerSm = 4;

// AttentionItem of plan.h.
struct ListItem {
  std::int32_t batch, head, q_block, first_kv, num_kv;
};

// The items of one (batch, head).
struct GroupTotals {
  int items, pairs, units;
  int cached;  // blocks with tokens that have no item
};

// Part of an item that was dealt to a multiprocessor. Units as in pieces.cpp: what can be cut.
struct DealtPart {
  std::int32_t item, first, count;  // units [first, first + count)
  std::int16_t number;              // among the parts of its item
  std::int16_t sm;
  std::int32_t order;  // among the parts of its multiprocessor
};

// CutOptions of pieces.h, in units.
struct DealOptions {
  int num_sms;
  int blocks_per_unit, tiles_per_unit;
  int piece_cost;      // tiles
  int smallest_part;   // tiles
  int smallest_units;  // the same, rounded up to units
  int most_parts;
  int most_cuts;
  int sorted_per_sm;
};

inline constexpr int kCachedRow = -1, kEmptyRow = -2;

// Every pointer is device memory. Groups are (batch, head), batch-major.
struct AttentionListsParams {
  const std::uint32_t *cache, *skip;  // SymbolWords
  int head_words, kv_words;
  int batch, num_heads;
  GridTable q, kv;
  DealOptions options;

  int* counts;          // [groups, q_blocks]: kv blocks of a live row, else kCachedRow or kEmptyRow
  GroupTotals* totals;  // [groups]
  ListItem* items;      // in the order of AttentionPlan::items
  DealtPart* parts;
  std::int32_t* num_parts;    // of all items together
  std::int16_t* parts_of;     // [items]
  std::int32_t* slots;        // [items]: of those that were cut
  std::int32_t* first_of_sm;  // [num_sms + 1]
  AttentionPiece* pieces;
  AttentionStart* starts;  // [num_sms]
  std::int32_t* kv_blocks;
  int2* kv_table;      // [batch, kv_blocks]
  CachedRows* cached;  // [groups * q_blocks]: those there are, then blocks of no rows
};

}  // namespace flashomni::cuda
