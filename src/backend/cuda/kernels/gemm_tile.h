// gemm_tile.h -- units of work of the projection kernels.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FO_HOST_DEVICE __host__ __device__
#else
#define FO_HOST_DEVICE
#endif

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
// warpgroup; block r of the cluster takes rows[2 r] and rows[2 r + 1]. Of two row blocks each block
// takes one, rows[0] and rows[2]; or, summed in halves, both of one or two and half of in_features.
struct HeadTile {
  std::int32_t head;        // < 0: there are no more tiles
  std::int32_t in_halves;   // then the last two of `rows` are the first two
  RowRange rows[4];         // num_rows == 0: none
  std::int32_t projection;  // whose head; the scheduler writes it
};

// Into how many row blocks a tile the last, unfinished round of tiles is cut, and what is left of
// each head: 4 are not cut, 2 and 1 are summed in halves.
struct LastRound {
  int rest_rows = 4;  // of the tiles of three or four row blocks of that round
  int left_rows = 2;  // of one or two row blocks of a head
};

// Tiles of the last round by how they are cut: [0] not, [1] of two row blocks, [2] of one.
struct LastRoundTiles {
  int rest[3] = {}, left[3] = {};
};

// The cut of the last round that takes least time. In 40ths of a round of tiles of four row blocks,
// a round takes what its first tile does: its share of the products, and more the less it shares of
// what it reads (measured on an H200, docs/kernels/gemm_sm90.md).
FO_HOST_DEVICE constexpr LastRound cut_last_round(const LastRoundTiles& tiles, int num_clusters) {
  constexpr int kRestCosts[] = {40, 27, 20}, kLeftCosts[] = {31, 27, 20};
  // Where two take as long, the later: it reads less, or spreads better.
  constexpr LastRound kCuts[] = {{4, 2}, {4, 1}, {4, 4}, {2, 2}, {1, 1}};
  LastRound best{};
  int best_cost = 1 << 30;
  for (const LastRound& cut : kCuts) {
    const int kind = cut.rest_rows == 4 ? 0 : cut.rest_rows == 2 ? 1 : 2;
    const int left_kind = cut.left_rows == 4 ? 0 : cut.left_rows == 2 ? 1 : 2;
    const int rest = tiles.rest[kind];
    const int rounds = (rest + tiles.left[left_kind] + num_clusters - 1) / num_clusters;
    const int large_rounds = (rest + num_clusters - 1) / num_clusters;
    const int cost =
        large_rounds * kRestCosts[kind] + (rounds - large_rounds) * kLeftCosts[left_kind];
    if (cost > best_cost) continue;
    best = cut;
    best_cost = cost;
  }
  return best;
}

}  // namespace flashomni::cuda
