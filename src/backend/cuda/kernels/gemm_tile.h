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

// Of kHeads at head_dim 128: a head of up to four row blocks in which it is live, one a consumer
// warpgroup; block r of the cluster takes rows[2 r] and rows[2 r + 1]. Or, summed in halves, of up
// to two row blocks: each block takes both and half of in_features.
struct HeadTile {
  std::int32_t head;        // < 0: there are no more tiles
  std::int32_t in_halves;   // then the last two of `rows` are the first two
  RowRange rows[4];         // num_rows == 0: none
  std::int32_t projection;  // whose head; the scheduler writes it
};

}  // namespace flashomni::cuda
