// ranking.cpp -- blocks ordered by a measured value: what the policies that read scores share.
// SPDX-License-Identifier: Apache-2.0
#include "policy/ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"

namespace flashomni {

void check_scores(const char* function, const BlockScores& scores, const SparseSymbols& symbols) {
  const int batch = symbols.q_grid().batch(), num_heads = symbols.num_heads();
  const int q_blocks = symbols.q_grid().num_blocks(), kv_blocks = symbols.kv_grid().num_blocks();
  FO_CHECK(scores.batch == batch && scores.num_heads == num_heads &&
               scores.num_q_blocks == q_blocks && scores.num_kv_blocks == kv_blocks,
           "%s: scores are [%d, %d, %d, %d], symbols are [%d, %d, %d, %d]", function, scores.batch,
           scores.num_heads, scores.num_q_blocks, scores.num_kv_blocks, batch, num_heads, q_blocks,
           kv_blocks);
}

ItemBlocks::ItemBlocks(const SparseSymbols& symbols, int item) {
  const BlockGrid& q_grid = symbols.q_grid();
  const BlockGrid& kv_grid = symbols.kv_grid();
  for (int q_block = 0; q_block < q_grid.num_blocks(); ++q_block) {
    if (q_grid.at(item, q_block).count == 0) continue;
    (q_grid.is_text(item, q_block) ? text_rows : image_rows).push_back(q_block);
  }
  for (int kv_block = 0; kv_block < kv_grid.num_blocks(); ++kv_block) {
    if (kv_grid.at(item, kv_block).count > 0) kv_blocks.push_back(kv_block);
  }
}

void softmax(std::span<double> values) {
  const double maximum = *std::ranges::max_element(values);
  double sum = 0;
  for (double& value : values) sum += value = std::exp(value - maximum);
  for (double& value : values) value /= sum;
}

std::vector<double> row_probabilities(const BlockScores& scores, int item, int head, int q_block,
                                      std::span<const int> kv_blocks) {
  const std::span<const float> logits = scores.logits_row(item, head, q_block);
  std::vector<double> row(kv_blocks.size());
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = logits[kv_blocks[j]];
  softmax(row);
  return row;
}

std::vector<int> low_prefix(std::span<const double> values, double tau) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (tau <= 0 || !std::isfinite(total)) return {};
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int position) { return values[position]; });
  std::size_t count = 0;
  double running = 0;
  while (count + 1 < order.size()) {
    running += values[order[count]];
    if (running > tau * total) break;
    ++count;
  }
  order.resize(count);
  return order;
}

bool is_q_representative(const BlockScores& scores, int item, int head, int q_block,
                         const std::optional<double>& threshold) {
  if (!threshold) return true;
  const std::size_t row = static_cast<std::size_t>(item) * scores.num_heads + head;
  return scores.q_similarity[row * scores.num_q_blocks + q_block] > *threshold;
}

bool is_k_representative(const BlockScores& scores, int item, int head, int kv_block,
                         const std::optional<double>& threshold) {
  if (!threshold) return true;
  const std::size_t row = static_cast<std::size_t>(item) * scores.num_heads + head;
  return scores.k_similarity[row * scores.num_kv_blocks + kv_block] > *threshold;
}

}  // namespace flashomni
