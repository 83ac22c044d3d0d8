// attention_piece.h -- the units of work of the attention kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace flashomni::cuda {

inline constexpr int kAttentionTileKv = 128;  // keys a round

// A query block of a head against all of its live kv blocks (num_parts == 1), or against one of
// several parts of them.
struct AttentionPiece {
  std::int32_t batch, head;
  std::int32_t row, num_rows;     // of the query block
  std::int32_t first_kv, num_kv;  // kv_blocks[first_kv .. first_kv + num_kv)
  std::int32_t last_kv_tokens;    // tokens of the last of them; the others count as full blocks
  std::int16_t part, num_parts;
  std::int32_t slot;  // part i leaves its partial result at slot + i
};

// K and V tiles are loaded in groups of rows.
struct AttentionGroup {
  std::int32_t row;    // first token; kNoRow, past the end of any tensor, if there is no group
  std::int32_t valid;  // tokens of the block in the group
};
inline constexpr std::int32_t kNoRow = 1 << 30;
inline constexpr int kMostGroups = 8;  // of a tile: of 16 rows

// What a thread block begins with, all of it, so that its first loads wait for one read.
struct AttentionStart {
  AttentionPiece piece;                // pieces[first], unless there is none
  std::int32_t first, end;             // its pieces are [first, end)
  AttentionGroup groups[kMostGroups];  // of that piece's first tile
};

// Rows of a query block of a head that has no piece.
struct CachedRows {
  std::int32_t batch, head;
  std::int32_t row, num_rows;
};

}  // namespace flashomni::cuda
