// ranking.h -- blocks ordered by a measured value: what the policies that read scores share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "flashomni/policy.h"

namespace flashomni {

// Throws kInvalidArgument, in the name of `function`, unless the scores are of the symbols' shape.
void check_scores(const char* function, const BlockScores& scores, const SparseSymbols& symbols);

// The blocks of one item that hold valid tokens.
struct ItemBlocks {
  std::vector<int> image_rows, text_rows, kv_blocks;
  ItemBlocks(const SparseSymbols& symbols, int item);
};

// Softmax of a row of logits over `kv_blocks`.
std::vector<double> row_probabilities(const BlockScores& scores, int item, int head, int q_block,
                                      std::span<const int> kv_blocks);
void softmax(std::span<double> values);

// Positions of the smallest values whose running sum stays within tau of the total; never all.
// tau <= 0 selects nothing, not even zeros; nor is anything selected from values that are not
// finite. Ties go to the lower position.
std::vector<int> low_prefix(std::span<const double> values, double tau);

// The self-similarity gate of SpargeAttn: the pooled query or key of a block whose tokens differ
// too much says nothing about them. Without a threshold every block is representative.
bool is_q_representative(const BlockScores& scores, int item, int head, int q_block,
                         const std::optional<double>& threshold);
bool is_k_representative(const BlockScores& scores, int item, int head, int kv_block,
                         const std::optional<double>& threshold);

}  // namespace flashomni
