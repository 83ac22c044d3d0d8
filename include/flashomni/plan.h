// plan.h -- symbols compiled to lists that a kernel can walk. No kernel tests symbol bits.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flashomni/symbols.h"

namespace flashomni {

// What a backend keeps beside the lists of a plan it built, such as copies in device memory. Empty
// in plans of the free functions below.
using BackendLists = std::unique_ptr<void, void (*)(void*)>;
inline BackendLists no_backend_lists() {
  return {nullptr, [](void*) {}};
}

// One live query block of one head: attend to kv_blocks[first_kv .. first_kv + num_kv).
struct AttentionItem {
  std::int32_t batch = 0, head = 0, q_block = 0;
  std::int32_t first_kv = 0, num_kv = 0;
  bool operator==(const AttentionItem&) const = default;
};

// The live work of one attention layer. Items are grouped by (batch, head), so that a head's K and
// V stay in cache, and within a group sorted by falling num_kv, then rising q_block, so that the
// last items to start are short.
struct AttentionPlan {
  BlockGrid q_grid, kv_grid;
  int num_heads = 0;
  std::vector<AttentionItem> items;
  std::vector<std::int32_t> kv_blocks;  // ascending within an item
  SymbolStats stats;
  // Built from SymbolWords (selection.h): only the device knows the lists. Items, kv_blocks and
  // stats are then empty, and the plan serves no other backend.
  bool lists_on_device = false;
  BackendLists backend_lists = no_backend_lists();
};

// Fills `plan` from `symbols`; reuses its storage. After a call with all-live symbols of the same
// grids, no later call on the same plan allocates.
void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan);

// One row block of a projection: rows [row, row + num_rows) of item `batch` of the matrix.
struct RowBlock {
  std::int32_t batch = 0, q_block = 0;
  std::int32_t row = 0, num_rows = 0;
  std::int32_t num_cached = 0;    // heads(i) lists this many cached heads, then the live ones
  bool same_as_previous = false;  // the cached heads are those of the previous symbols
  bool operator==(const RowBlock&) const = default;
};

// The live work of GEMM-Q and GEMM-O over a range of the sequence's tokens: in double-stream
// models the text and image rows are projected by different weights, each with a plan of its own.
struct GemmPlan {
  int num_heads = 0, batch = 0;
  int num_rows = 0;      // rows of the matrix per item, valid or not
  int num_q_blocks = 0;  // of the symbols' whole grid: the length of per-row-block tables
  std::vector<RowBlock> row_blocks;  // blocks with at least one valid row, batch-major, ascending
  std::vector<std::int32_t> head_lists;  // [row_blocks, num_heads]: cached then live, ascending
  std::int64_t live_rows = 0;            // sum over heads of rows to compute
  std::int64_t total_rows = 0;           // num_heads times the valid rows
  // Built from SymbolWords (selection.h): only the device knows the lists. row_blocks and
  // head_lists are then empty, live_rows is 0, and the plan serves no other backend.
  bool lists_on_device = false;
  BackendLists backend_lists = no_backend_lists();

  // Both throw kInvalidArgument if the lists are on a device.
  std::span<const std::int32_t> cached_heads(std::size_t row_block) const;
  std::span<const std::int32_t> live_heads(std::size_t row_block) const;
};

// Tokens [first_token, first_token + num_tokens) must begin and end at block borders of the
// symbols' q grid; throws kInvalidArgument otherwise. `previous` (may be nullptr) are the symbols
// of the last update, of the same grids; it sets RowBlock::same_as_previous. Reuses storage.
void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                     const SparseSymbols* previous, GemmPlan& plan);

}  // namespace flashomni
