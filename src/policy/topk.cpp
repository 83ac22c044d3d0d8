// topk.cpp -- keeps the key blocks of largest pooled logit, as many in every row.
//
// A live image row of n valid kv blocks keeps max(1, floor(keep n)) of them, and the text.
// Source: SpargeAttn's top-k variant, arXiv:2502.18137 and its code (topk 0.5, gate off).
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "policy/policies.h"
#include "policy/ranking.h"

namespace flashomni {
namespace {

class TopK : public SparsityPolicy {
 public:
  explicit TopK(double keep) : keep_(keep) {}

  std::string_view name() const override { return "topk"; }

  std::optional<BlockScoreOptions> needs() const override {
    if (keep_ >= 1) return std::nullopt;
    return BlockScoreOptions{};
  }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (!context.scores) return;
    check_scores("topk", *context.scores, symbols);
    const double keep = 1 - (1 - keep_) * context.ramp;
    for (int item = 0; item < symbols.q_grid().batch(); ++item) {
      const ItemBlocks blocks(symbols, item);
      for (int row = 0; row < symbols.num_heads() * std::ssize(blocks.image_rows); ++row) {
        const int head = row / static_cast<int>(blocks.image_rows.size());
        const int q_block = blocks.image_rows[row % blocks.image_rows.size()];
        skip_smallest(context.scores->logits_row(item, head, q_block), blocks.kv_blocks, keep,
                      [&](int kv_block) {
                        if (symbols.kv_grid().is_text(item, kv_block)) return;
                        symbols.skip(item, head, q_block, kv_block);
                      });
      }
    }
  }

 private:
  static void skip_smallest(std::span<const float> logits, std::vector<int> kv_blocks, double keep,
                            const auto& skip) {
    const auto logit = [&](int kv_block) { return logits[kv_block]; };
    if (!std::ranges::all_of(kv_blocks, [&](int j) { return std::isfinite(logits[j]); })) return;
    std::ranges::stable_sort(kv_blocks, std::ranges::greater(), logit);
    // Rounded up a little: 0.7 * 10 must give 7.
    const auto kept = static_cast<std::size_t>(keep * std::ssize(kv_blocks) + 1e-9);
    for (std::size_t i = std::max<std::size_t>(1, kept); i < kv_blocks.size(); ++i) {
      skip(kv_blocks[i]);
    }
  }

  double keep_;
};

}  // namespace

PolicyPtr make_topk(const OptionReader& options) {
  return std::make_unique<TopK>(options.number("keep", 0, 1).value_or(.5));
}

}  // namespace flashomni
