// tiles.h -- cuts the live work of a projection into the tiles that clusters of thread blocks take.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/plan.h"

#include "backend/cuda/kernels/gemm_tile.h"

namespace flashomni::cuda {

// Where the last round of tiles would leave half of the clusters idle, its tiles are halved; the
// halves come last.

// The tile of kLinear from which on tiles are halved; all are whole if it is num_tiles.
int count_wide_tiles(int num_tiles, int num_clusters);

// Output columns of a row block, 2 x kWideTile at a time; row blocks with many live heads first.
std::vector<GemmTile> make_column_tiles(const GemmPlan& plan, int out_features);
void halve_last_tiles(int out_features, int num_clusters, std::vector<GemmTile>& tiles);

// The live heads of a row block, up to `heads_per_tile` at a time.
std::vector<GemmTile> make_row_tiles(const GemmPlan& plan, int heads_per_tile);

// How many row blocks apart two that make a tile of two heads may be: what is between them should
// still be in L2.
inline constexpr int kPairReach = 64;

// Row blocks in order. Of each, its live heads are paired, first with second, third with fourth;
// where the last row block without a partner that has the same pair is at most kPairReach before,
// the two make a tile of two heads. The heads of pairs without a partner, and an odd last head,
// wait for row blocks that have them likewise: four make a tile, when the fourth comes. So the
// heads of a row block are worked on at about the same time. What is left of each head comes last,
// two row blocks or one as a tile that is summed in halves. The last, unfinished round of whole
// tiles and what is left are cut into such tiles where that saves time.
std::vector<HeadTile> make_head_tiles(const GemmPlan& plan, int num_clusters);

}  // namespace flashomni::cuda
