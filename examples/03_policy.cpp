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
    const BlockGrid &q_grid = symbols.q_grid(), &kv_grid = symbols.kv_grid();
    for (int row = 0; row < symbols.num_heads() * q_grid.num_blocks(); ++row) {
      const int head = row / q_grid.num_blocks(), q_block = row % q_grid.num_blocks();
      const auto logits = context.scores->logits_row(0, head, q_block);
      for (int j = 0; j < kv_grid.num_blocks() && !q_grid.is_text(0, q_block); ++j) {
        const auto larger = std::ranges::count_if(logits, std::bind_front(std::less(), logits[j]));
        if (larger >= keep_ && !kv_grid.is_text(0, j)) symbols.skip(0, head, q_block, j);
      }
    }
  }

 private:
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
