// guidance.cpp -- caches the image blocks that text neither looks at nor guides.
//
//   P = softmax over kv blocks of each row of pooled logits
//   C(i) = what text rows see of image block i        = sum over text rows j of P[j, i]
//   G(i) = how far text columns guide image block i   = sum over text columns j of
//                                                       softmax over image rows of P[:, j], at i
//   cached = the blocks of least C and, at the same time, of least G
//
// "Of least" is low_prefix(): as many as fit under a share tau_q of the total.
// Source: arXiv:2509.25401, the selection of S_c.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "policy/policies.h"
#include "policy/ranking.h"

namespace flashomni {
namespace {

class TextCache : public SparsityPolicy {
 public:
  explicit TextCache(const FlashOmniOptions& options) : options_(options) {}

  std::string_view name() const override { return "guidance"; }

  std::optional<BlockScoreOptions> needs() const override {
    if (options_.tau_q <= 0) return std::nullopt;
    return BlockScoreOptions{.similarity = options_.sim_threshold.has_value(),
                             .subtract_k_mean = options_.subtract_k_mean,
                             .log_count_bias = options_.log_count_bias};
  }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (context.scores) cache_unguided(options_, context.ramp, *context.scores, symbols);
  }

  std::string limitation(const BlockGrid& q_grid, std::span<const TokenPlace>) const override {
    if (options_.tau_q <= 0 || q_grid.has_text(0)) return {};
    return "no text tokens: caching needs a text/image split, nothing is cached";
  }

 private:
  FlashOmniOptions options_;
};

// Tokens that two blocks share.
int overlap(Block a, Block b) {
  return std::max(0, std::min(a.start + a.count, b.start + b.count) - std::max(a.start, b.start));
}

// The selection for one item of the batch.
class ItemCaching {
 public:
  ItemCaching(const FlashOmniOptions& options, double ramp, const BlockScores& scores, int item,
              SparseSymbols& symbols)
      : options_(options),
        tau_(options.tau_q * ramp),
        scores_(scores),
        item_(item),
        symbols_(symbols),
        blocks_(symbols, item) {}

  // Fills the rows of C and G of one head, indexed by q block; 0 at text blocks.
  void score(int head, std::span<float> c, std::span<float> g) const;
  // Caches by C and G rows: of one head, or summed over heads.
  void cache_blocks(int head, std::span<const float> c, std::span<const float> g);

 private:
  std::vector<bool> low_blocks(std::span<const float> row) const;

  const FlashOmniOptions& options_;
  const double tau_;
  const BlockScores& scores_;
  const int item_;
  SparseSymbols& symbols_;
  const ItemBlocks blocks_;
};

void ItemCaching::score(int head, std::span<float> c, std::span<float> g) const {
  const auto& [image_rows, text_rows, kv_blocks] = blocks_;
  if (text_rows.empty() || image_rows.empty() || kv_blocks.empty()) return;
  const BlockGrid& q_grid = symbols_.q_grid();
  const BlockGrid& kv_grid = symbols_.kv_grid();
  std::vector<double> seen_by_text(kv_blocks.size());
  for (int q_block : text_rows) {
    const std::vector<double> row = row_probabilities(scores_, item_, head, q_block, kv_blocks);
    for (std::size_t j = 0; j < row.size(); ++j) seen_by_text[j] += row[j];
  }
  std::vector<std::vector<double>> image_map;
  for (int q_block : image_rows) {
    image_map.push_back(row_probabilities(scores_, item_, head, q_block, kv_blocks));
  }

  std::vector<double> column(image_rows.size());
  for (std::size_t j = 0; j < kv_blocks.size(); ++j) {
    if (kv_grid.is_text(item_, kv_blocks[j])) {
      for (std::size_t i = 0; i < column.size(); ++i) column[i] = image_map[i][j];
      softmax(column);
      for (std::size_t i = 0; i < column.size(); ++i) g[image_rows[i]] += column[i];
      continue;
    }
    // Where block_q and block_kv differ, a kv block's mass is shared out over the q blocks that
    // its tokens belong to.
    const Block kv = kv_grid.at(item_, kv_blocks[j]);
    for (int q_block : image_rows) {
      c[q_block] += seen_by_text[j] * overlap(q_grid.at(item_, q_block), kv) / kv.count;
    }
  }
}

// True at the image blocks of least score.
std::vector<bool> ItemCaching::low_blocks(std::span<const float> row) const {
  std::vector<double> values;
  for (int q_block : blocks_.image_rows) values.push_back(row[q_block]);
  std::vector<bool> low(row.size());
  for (int position : low_prefix(values, tau_)) low[blocks_.image_rows[position]] = true;
  return low;
}

void ItemCaching::cache_blocks(int head, std::span<const float> c, std::span<const float> g) {
  if (blocks_.text_rows.empty()) return;
  const std::vector<bool> low_c = low_blocks(c), low_g = low_blocks(g);
  for (int q_block : blocks_.image_rows) {
    if (low_c[q_block] && low_g[q_block] &&
        is_q_representative(scores_, item_, head, q_block, options_.sim_threshold)) {
      symbols_.cache(item_, head, q_block);
    }
  }
}

}  // namespace

SelectionScores cache_unguided(const FlashOmniOptions& options, double ramp,
                               const BlockScores& scores, SparseSymbols& symbols) {
  check_scores("select_flashomni", scores, symbols);
  const int batch = symbols.q_grid().batch(), num_heads = symbols.num_heads();
  const std::size_t row_size = symbols.q_grid().num_blocks(), item_size = num_heads * row_size;
  SelectionScores result{std::vector<float>(batch * item_size),
                         std::vector<float>(batch * item_size)};
  std::vector<float> layer_c(row_size), layer_g(row_size);
  for (int item = 0; item < batch; ++item) {
    ItemCaching selection(options, ramp, scores, item, symbols);
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
    }
  }
  return result;
}

PolicyPtr make_text_cache(const FlashOmniOptions& options) {
  return std::make_unique<TextCache>(options);
}

PolicyPtr make_guidance(const OptionReader& reader) {
  FlashOmniOptions options;
  options.tau_q = reader.number("tau-q", -1, 1).value_or(options.tau_q);
  options.scope = reader.scope("scope", options.scope);
  return make_text_cache(options);
}

}  // namespace flashomni
