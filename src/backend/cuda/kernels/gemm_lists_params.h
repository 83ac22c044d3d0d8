// gemm_lists_params.h -- what the kernels that turn symbols into the lists of a projection are
// told; built by gemm_lists.cu.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/kernels/gemm_tile.h"

namespace flashomni::cuda {

// RowBlock of plan.h.
struct ListRow {
  std::int32_t batch, q_block, row, num_rows;  // the host writes these when shapes change
  std::int32_t num_cached, same_as_previous;   // list_heads_kernel these
};

// Every pointer is device memory.
struct GemmListsParams {
  const std::uint32_t *cache, *previous;  // of SymbolWords; previous may be nullptr
  int num_q_blocks, num_heads, head_words;
  int num_row_blocks;
  ListRow* rows;        // [num_row_blocks]
  std::uint32_t* live;  // [num_row_blocks, head_words]: their words of `cache`
  std::int32_t* heads;  // [num_row_blocks, num_heads]: GemmPlan::head_lists
};

// The columns of GEMM-O.
struct ColumnTilesParams {
  GemmTile* tiles;
  int out_features;
  int columns;        // tiles of a row block
  int wide_tiles;     // from this tile on, tiles are halved
  int narrow_column;  // the last column of a row block has no second half
};

}  // namespace flashomni::cuda
