// pieces.h -- cuts the items of an attention plan into the pieces that thread blocks take.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/plan.h"

#include "backend/cuda/kernels/attention_piece.h"

namespace flashomni::cuda {

// How finely the last items are cut; docs/kernels/attention_sm90.md has the measurements.
struct CutOptions {
  int num_sms = 132;
  int smallest_part = 8;  // tiles: shorter parts cost more to merge than they balance
  int most_parts = 8;
};

struct Pieces {
  std::vector<AttentionPiece> list;
  int num_slots = 0;  // partial results
};

// Keeps the items' order. An item is cut when it is longer than its share of the tiles that remain,
// from it to the end of the plan, on every SM: so the early ones stay whole, and the last are short
// enough to end together. Parts begin at whole tiles.
void cut_into_pieces(const AttentionPlan& plan, const CutOptions& options, Pieces& pieces);

}  // namespace flashomni::cuda
