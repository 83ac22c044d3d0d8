// select_flashomni.cpp -- the selection of arXiv:2509.25401, from block-pooled logits.
//
//   P = softmax over kv blocks of each row of logits
//   C(i) = what text rows see of image block i        = sum over text rows j of P[j, i]
//   G(i) = how far text columns guide image block i   = sum over text columns j of
//                                                       softmax over image rows of P[:, j], at i
//   cached = the blocks of least C and, at the same time, of least G
//   skipped in a live image row = the kv blocks of least P
//
// "Of least" is low_prefix(): as many as fit under a share tau of the total.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "flashomni/policy.h"

#include "core/check.h"

namespace flashomni {
namespace {

void softmax(std::span<double> values) {
  const double maximum = *std::ranges::max_element(values);
  double sum = 0;
  for (double& value : values) sum += value = std::exp(value - maximum);
  for (double& value : values) value /= sum;
}

// Positions of the smallest values whose running sum stays within tau of the total; never all.
// tau <= 0 selects nothing, not even zeros; nor is anything selected from values that are not
// finite. Ties go to the lower position. `order` is scratch; the result points into it.
std::span<const int> low_prefix(std::span<const double> values, double tau,
                                std::vector<int>& order) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (tau <= 0 || !std::isfinite(total)) return {};
  order.resize(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int position) { return values[position]; });
  std::size_t count = 0;
  double running = 0;
  while (count + 1 < order.size()) {
    running += values[order[count]];
    if (running > tau * total) break;
    ++count;
  }
  return std::span<const int>(order).first(count);
}

// Tokens that two blocks share.
int overlap(Block a, Block b) {
  return std::max(0, std::min(a.start + a.count, b.start + b.count) - std::max(a.start, b.start));
}

// The selection for one item of the batch; lists hold blocks with valid tokens only.
class ItemSelection {
 public:
  ItemSelection(const FlashOmniOptions& options, double ramp, const BlockScores& scores, int item,
                SparseSymbols& symbols);

  // Fills the rows of C and G of one head, indexed by q block; 0 at text blocks.
  void score(int head, std::span<float> c, std::span<float> g);
  // Caches by C and G rows: of one head, or summed over heads.
  void cache_blocks(int head, std::span<const float> c, std::span<const float> g);
  void skip_blocks(int head);

 private:
  bool q_is_representative(int head, int q_block) const;
  bool kv_is_representative(int head, int kv_block) const;
  std::vector<double> probabilities(int head, int q_block, const std::vector<int>& kv_blocks) const;
  std::vector<bool> low_blocks(std::span<const float> row);
  void skip_row(int head, int q_block, const std::vector<int>& candidates);

  const FlashOmniOptions& options_;
  const double tau_q_, tau_kv_;
  const BlockScores& scores_;
  const int item_;
  SparseSymbols& symbols_;
  std::vector<int> image_rows_, text_rows_, kv_blocks_;
  std::vector<int> order_;  // scratch of low_prefix
};

ItemSelection::ItemSelection(const FlashOmniOptions& options, double ramp,
                             const BlockScores& scores, int item, SparseSymbols& symbols)
    : options_(options),
      tau_q_(options.tau_q * ramp),
      tau_kv_(options.tau_kv * ramp),
      scores_(scores),
      item_(item),
      symbols_(symbols) {
  const BlockGrid& q_grid = symbols.q_grid();
  const BlockGrid& kv_grid = symbols.kv_grid();
  for (int q_block = 0; q_block < q_grid.num_blocks(); ++q_block) {
    if (q_grid.at(item, q_block).count == 0) continue;
    (q_grid.is_text(item, q_block) ? text_rows_ : image_rows_).push_back(q_block);
  }
  for (int kv_block = 0; kv_block < kv_grid.num_blocks(); ++kv_block) {
    if (kv_grid.at(item, kv_block).count > 0) kv_blocks_.push_back(kv_block);
  }
}

// The pooled query or key of a block whose tokens differ too much says nothing about them.
bool ItemSelection::q_is_representative(int head, int q_block) const {
  if (!options_.sim_threshold) return true;
  const std::size_t row = static_cast<std::size_t>(item_) * scores_.num_heads + head;
  return scores_.q_similarity[row * scores_.num_q_blocks + q_block] > *options_.sim_threshold;
}

bool ItemSelection::kv_is_representative(int head, int kv_block) const {
  if (!options_.sim_threshold) return true;
  const std::size_t row = static_cast<std::size_t>(item_) * scores_.num_heads + head;
  return scores_.k_similarity[row * scores_.num_kv_blocks + kv_block] > *options_.sim_threshold;
}

std::vector<double> ItemSelection::probabilities(int head, int q_block,
                                                 const std::vector<int>& kv_blocks) const {
  const std::span<const float> logits = scores_.logits_row(item_, head, q_block);
  std::vector<double> row(kv_blocks.size());
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = logits[kv_blocks[j]];
  softmax(row);
  return row;
}

void ItemSelection::score(int head, std::span<float> c, std::span<float> g) {
  if (text_rows_.empty() || image_rows_.empty() || kv_blocks_.empty()) return;
  const BlockGrid& q_grid = symbols_.q_grid();
  const BlockGrid& kv_grid = symbols_.kv_grid();
  std::vector<double> seen_by_text(kv_blocks_.size());
  for (int q_block : text_rows_) {
    const std::vector<double> row = probabilities(head, q_block, kv_blocks_);
    for (std::size_t j = 0; j < row.size(); ++j) seen_by_text[j] += row[j];
  }
  std::vector<std::vector<double>> image_map;
  for (int q_block : image_rows_) image_map.push_back(probabilities(head, q_block, kv_blocks_));

  std::vector<double> column(image_rows_.size());
  for (std::size_t j = 0; j < kv_blocks_.size(); ++j) {
    if (kv_grid.is_text(item_, kv_blocks_[j])) {
      for (std::size_t i = 0; i < column.size(); ++i) column[i] = image_map[i][j];
      softmax(column);
      for (std::size_t i = 0; i < column.size(); ++i) g[image_rows_[i]] += column[i];
      continue;
    }
    // Where block_q and block_kv differ, a kv block's mass is shared out over the q blocks that
    // its tokens belong to.
    const Block kv = kv_grid.at(item_, kv_blocks_[j]);
    for (int q_block : image_rows_) {
      c[q_block] += seen_by_text[j] * overlap(q_grid.at(item_, q_block), kv) / kv.count;
    }
  }
}

// True at the image blocks of least score.
std::vector<bool> ItemSelection::low_blocks(std::span<const float> row) {
  std::vector<double> values;
  for (int q_block : image_rows_) values.push_back(row[q_block]);
  std::vector<bool> low(row.size());
  for (int position : low_prefix(values, tau_q_, order_)) low[image_rows_[position]] = true;
  return low;
}

void ItemSelection::cache_blocks(int head, std::span<const float> c, std::span<const float> g) {
  if (text_rows_.empty()) return;
  const std::vector<bool> low_c = low_blocks(c), low_g = low_blocks(g);
  for (int q_block : image_rows_) {
    if (low_c[q_block] && low_g[q_block] && q_is_representative(head, q_block)) {
      symbols_.cache(item_, head, q_block);
    }
  }
}

void ItemSelection::skip_blocks(int head) {
  std::vector<int> candidates;
  for (int kv_block : kv_blocks_) {
    if (kv_is_representative(head, kv_block)) candidates.push_back(kv_block);
  }
  if (candidates.empty()) return;
  for (int q_block : image_rows_) {
    if (symbols_.is_live(item_, head, q_block) && q_is_representative(head, q_block)) {
      skip_row(head, q_block, candidates);
    }
  }
}

void ItemSelection::skip_row(int head, int q_block, const std::vector<int>& candidates) {
  const std::vector<double> row = probabilities(head, q_block, candidates);
  for (int position : low_prefix(row, tau_kv_, order_)) {
    const int kv_block = candidates[position];
    const bool protect = options_.keep_text_kv && symbols_.kv_grid().is_text(item_, kv_block);
    if (!protect) symbols_.skip(item_, head, q_block, kv_block);
  }
}

}  // namespace

SelectionScores select_flashomni(const FlashOmniOptions& options, double ramp,
                                 const BlockScores& scores, SparseSymbols& symbols) {
  const int batch = symbols.q_grid().batch(), num_heads = symbols.num_heads();
  const int num_q_blocks = symbols.q_grid().num_blocks();
  FO_CHECK(scores.batch == batch && scores.num_heads == num_heads &&
               scores.num_q_blocks == num_q_blocks &&
               scores.num_kv_blocks == symbols.kv_grid().num_blocks(),
           "select_flashomni: scores are [%d, %d, %d, %d], symbols are [%d, %d, %d, %d]",
           scores.batch, scores.num_heads, scores.num_q_blocks, scores.num_kv_blocks, batch,
           num_heads, num_q_blocks, symbols.kv_grid().num_blocks());
  const std::size_t row_size = num_q_blocks, item_size = num_heads * row_size;
  SelectionScores result{std::vector<float>(batch * item_size),
                         std::vector<float>(batch * item_size)};
  std::vector<float> layer_c(row_size), layer_g(row_size);
  for (int item = 0; item < batch; ++item) {
    ItemSelection selection(options, ramp, scores, item, symbols);
    const auto c = std::span(result.c).subspan(item * item_size, item_size);
    const auto g = std::span(result.g).subspan(item * item_size, item_size);
    std::ranges::fill(layer_c, 0.0f);
    std::ranges::fill(layer_g, 0.0f);
    for (int head = 0; head < num_heads; ++head) {
      const auto head_c = c.subspan(head * row_size, row_size);
      const auto head_g = g.subspan(head * row_size, row_size);
      selection.score(head, head_c, head_g);
      std::ranges::transform(layer_c, head_c, layer_c.begin(), std::plus());
      std::ranges::transform(layer_g, head_g, layer_g.begin(), std::plus());
    }
    const bool per_head = options.scope == PolicyScope::kHead;
    for (int head = 0; head < num_heads; ++head) {
      selection.cache_blocks(head, per_head ? c.subspan(head * row_size, row_size) : layer_c,
                             per_head ? g.subspan(head * row_size, row_size) : layer_g);
      selection.skip_blocks(head);
    }
  }
  return result;
}

}  // namespace flashomni
