// 03_policy.cpp -- a policy of one's own, asked for the symbols of one layer.
//
// docs/adding_a_policy.md quotes the class.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>

#include "flashomni/backend.h"
#include "flashomni/policy.h"

using namespace flashomni;

// Every image row attends to the text and to the `keep` kv blocks of largest pooled logit.
class TopBlocks : public SparsityPolicy {
 public:
  explicit TopBlocks(int keep) : keep_(keep) {}
  std::string_view name() const override { return "top-blocks"; }
  std::optional<BlockScoreOptions> needs() const override { return BlockScoreOptions{}; }
  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    for (int head = 0; head < symbols.num_heads(); ++head) {
      for (int q_block = 0; q_block < symbols.q_grid().num_blocks(); ++q_block) {
        if (!symbols.q_grid().is_text(0, q_block)) keep_largest(context, head, q_block, symbols);
      }
    }
  }

 private:
  void keep_largest(const PolicyContext& context, int head, int q_block,
                    SparseSymbols& symbols) const {
    const auto logits = context.scores->logits_row(0, head, q_block);
    std::vector<float> sorted(logits.begin(), logits.end());
    std::ranges::sort(sorted, std::greater());
    const float threshold = sorted[std::min<std::size_t>(keep_, sorted.size()) - 1];
    for (int kv_block = 0; kv_block < symbols.kv_grid().num_blocks(); ++kv_block) {
      const bool keep = logits[kv_block] >= threshold || symbols.kv_grid().is_text(0, kv_block);
      if (!keep) symbols.skip(0, head, q_block, kv_block);
    }
  }
  int keep_;
};

int main() {
  const auto backend = make_backend("auto");
  const Tensor q = Tensor::host(DType::kF32, {1, 320, 2, 64});  // 64 text and 256 image tokens
  const Tensor k = Tensor::host(DType::kF32, {1, 320, 2, 64});
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (const Tensor* tensor : {&q, &k}) {
    std::generate_n(tensor->as<float>(), tensor->num_elements(), [&] { return normal(random); });
  }

  const BlockGrid grid(32, 1, make_segments(320, 64, TextPosition::kFirst));
  const TopBlocks policy(3);
  BlockScores scores;
  backend->block_scores(q, k, grid, grid, *policy.needs(), scores, {});
  SparseSymbols symbols(grid, grid, 2);
  policy.select({.scores = &scores}, symbols);
  std::printf("%s keeps %.0f %% of the (query, key) pairs\n", policy.name().data(),
              100 * symbols.stats().density());
}
