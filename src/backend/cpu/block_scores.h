// block_scores.h -- block-pooled statistics of Q and K for policies.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cpu/context.h"

namespace flashomni::cpu {

// The contract of Backend::block_scores.
void block_scores(Context& context, ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                  const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores);

}  // namespace flashomni::cpu
