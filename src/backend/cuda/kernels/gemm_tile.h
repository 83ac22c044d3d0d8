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
// warpgroup; block r of the cluster takes rows[2 r] and rows[2 r + 1]. Or, summed in halves, of up
// to two row blocks: each block takes both and half of in_features.
struct HeadTile {
  std::int32_t head;        // < 0: there are no more tiles
  std::int32_t in_halves;   // then the last two of `rows` are the first two
  RowRange rows[4];         // num_rows == 0: none
  std::int32_t projection;  // whose head; the scheduler writes it
};

// Whether `rest` whole tiles and others in halves take longer than twice as many halves and those.
// A round of halves takes 11 20ths of a round of whole tiles: they read more of L2 for their work.
FO_HOST_DEVICE constexpr bool better_halved(int rest, int in_halves, int num_clusters) {
  const int halved_rounds = (2 * rest + in_halves + num_clusters - 1) / num_clusters;
  const int whole_rounds = (rest + in_halves + num_clusters - 1) / num_clusters;
  return 11 * halved_rounds < 20 * whole_rounds;
}

}  // namespace flashomni::cuda
