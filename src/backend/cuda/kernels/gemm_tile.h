// gemm_tile.h -- units of work of the projection kernels.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace flashomni::cuda {

inline constexpr int kWideTile = 256;  // columns a thread block; half of it where halved

// What a cluster of two thread blocks computes at a time: up to 128 rows, and `width` columns a
// block.
struct GemmTile {
  std::int32_t batch, row, num_rows;  // num_rows < 0: there are no more tiles
  std::int32_t column;                // first output column of the first block; kHeads: unused
  std::int32_t width;
  std::int32_t first_head;  // heads[first_head ..): num_cached cached heads, then num_live live
  std::int16_t num_cached, num_live;  // kHeads: at most 512 / head_dim live ones, none cached
  std::int32_t q_block;               // row block of the bias cache's order table
  std::int32_t same_heads;            // kUpdate: the cached heads are those of the last update
  std::int32_t projection;            // kHeads: whose heads; the scheduler writes it
};

struct RowRange {
  std::int32_t batch, row, num_rows;
};

// What the two thread blocks of a HeadTile have in common.
enum class Sharing : std::int32_t {
  kHead,  // the head, of four row blocks
  kRows,  // two row blocks, of two heads
  kBoth,  // the head and two row blocks: each sums over half of in_features
};

// Of kHeads at head_dim 128: up to four live pairs of row block and head, one a consumer warpgroup.
// Block r of the cluster takes rows[2 r] and rows[2 r + 1] of heads[r].
struct HeadTile {
  Sharing sharing;
  std::int32_t heads[2];  // heads[0] < 0: there are no more tiles
  RowRange rows[4];       // num_rows == 0: none; of kRows and kBoth the last two are the first two
  std::int32_t projection;  // whose head; the scheduler writes it
};

}  // namespace flashomni::cuda
