// pieces.h -- cuts the items of an attention plan into the pieces that thread blocks take.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/plan.h"

#include "backend/cuda/kernels/attention_piece.h"

namespace flashomni::cuda {

// docs/kernels/attention_sm90.md has the measurements.
struct CutOptions {
  int num_sms = 132;
  int piece_cost = 1;     // of a piece beside its tiles, in tiles
  int smallest_part = 3;  // tiles
  int most_parts = 8;
  int sorted_per_sm = 3;  // items at the end that are dealt longest first, whatever their head
};

struct Pieces {
  std::vector<AttentionPiece> list;
  std::vector<std::int32_t> first_of_sm;  // [num_sms + 1]: list[first_of_sm[i] ..) of SM i
  std::vector<AttentionStart> starts;     // [num_sms]
  int num_slots = 0;                      // partial results
};

// Deals the items out in advance: a multiprocessor looks several pieces ahead, so one that took
// what is next would take more than its share. Item by item, in the plan's order, to the one that
// is free first; what would keep it busy past the time at which all could end together is cut off
// and dealt out at the end. The last few items a multiprocessor come longest first, so that short
// ones fill the gaps. Parts begin at whole tiles and are numbered in the order of their kv blocks.
// There are at most as many cuts as multiprocessors, so that partial results have a bound.
void cut_into_pieces(const AttentionPlan& plan, const CutOptions& options, Pieces& pieces);

}  // namespace flashomni::cuda
