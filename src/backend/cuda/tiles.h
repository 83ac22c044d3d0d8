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

// Each live head waits until it is live in four row blocks; they make a tile, in the order in which
// the fourth comes. So whatever the mask tiles are full but for the last of a head, and the heads
// of a row block are worked on at about the same time, while it is in L2. What is left of each head
// comes last. The tiles of the last, unfinished round are cut where that saves time, into such as
// are summed in halves (cut_last_round).
std::vector<HeadTile> make_head_tiles(const GemmPlan& plan, int num_clusters);

}  // namespace flashomni::cuda
