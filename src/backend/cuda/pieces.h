// pieces.h -- cuts the items of an attention plan into the pieces that thread blocks take.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/plan.h"

#include "backend/cuda/kernels/attention_piece.h"

namespace flashomni::cuda {

// How finely items are cut. docs/kernels/attention_sm90.md has the measurements: a part costs as
// much as a piece besides its tiles, so cutting pays only where most multiprocessors would idle.
struct CutOptions {
  int num_sms = 132;
  double most_items_per_sm = 0.5;  // plans with more items than this are not cut
  int smallest_part = 8;           // tiles
  int most_parts = 8;
};

struct Pieces {
  std::vector<AttentionPiece> list;
  int num_slots = 0;  // partial results
};

// Keeps the items' order. In a plan of few items, one is cut when it is longer than its share of
// the tiles that remain, from it to the end of the plan, on every SM: so the early ones stay whole,
// and the last are short enough to end together. Parts begin at whole tiles.
void cut_into_pieces(const AttentionPlan& plan, const CutOptions& options, Pieces& pieces);

}  // namespace flashomni::cuda
