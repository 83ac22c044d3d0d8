// spargeattn.cpp -- skips the key blocks of least mass in the pooled attention map.
//
//   P = softmax over kv blocks of each row of pooled logits
//   skipped in a live image row = the kv blocks of least P, as many as fit under 1 - cdf together
//
// Blocks whose tokens differ too much (self-similarity at or below the threshold) are not judged by
// their mean: such a kv block is always used and takes no part in P, such a query row skips
// nothing. Source: SpargeAttn, arXiv:2502.18137 (first stage; its per-warp skipping of P V is not
// here), and the S_s of arXiv:2509.25401, which is the same selection with tau_kv = 1 - cdf.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"
#include "policy/ranking.h"

namespace flashomni {
namespace {

class MassSkip : public SparsityPolicy {
 public:
  explicit MassSkip(const FlashOmniOptions& options) : options_(options) {}

  std::string_view name() const override { return "spargeattn"; }

  std::optional<BlockScoreOptions> needs() const override {
    if (options_.tau_kv <= 0) return std::nullopt;
    return BlockScoreOptions{.similarity = options_.sim_threshold.has_value(),
                             .subtract_k_mean = options_.subtract_k_mean,
                             .log_count_bias = options_.log_count_bias};
  }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (context.scores) skip_low_mass(options_, context.ramp, *context.scores, symbols);
  }

 private:
  FlashOmniOptions options_;
};

// The rows of one (item, head).
class RowSkipping {
 public:
  RowSkipping(const FlashOmniOptions& options, double ramp, const BlockScores& scores, int item,
              int head, SparseSymbols& symbols)
      : options_(options),
        tau_(options.tau_kv * ramp),
        scores_(scores),
        item_(item),
        head_(head),
        symbols_(symbols),
        blocks_(symbols, item) {
    for (int kv_block : blocks_.kv_blocks) {
      if (is_k_representative(scores, item, head, kv_block, options.sim_threshold)) {
        candidates_.push_back(kv_block);
      }
    }
  }

  void run() {
    if (candidates_.empty()) return;
    for (int q_block : blocks_.image_rows) {
      if (symbols_.is_live(item_, head_, q_block) &&
          is_q_representative(scores_, item_, head_, q_block, options_.sim_threshold)) {
        skip_in_row(q_block);
      }
    }
  }

 private:
  void skip_in_row(int q_block) {
    const auto row = row_probabilities(scores_, item_, head_, q_block, candidates_);
    for (int position : low_prefix(row, tau_)) {
      const int kv_block = candidates_[position];
      const bool keep = options_.keep_text_kv && symbols_.kv_grid().is_text(item_, kv_block);
      if (!keep) symbols_.skip(item_, head_, q_block, kv_block);
    }
  }

  const FlashOmniOptions& options_;
  const double tau_;
  const BlockScores& scores_;
  const int item_, head_;
  SparseSymbols& symbols_;
  const ItemBlocks blocks_;
  std::vector<int> candidates_;  // the kv blocks that P is about
};

}  // namespace

void skip_low_mass(const FlashOmniOptions& options, double ramp, const BlockScores& scores,
                   SparseSymbols& symbols) {
  check_scores("select_flashomni", scores, symbols);
  for (int item = 0; item < symbols.q_grid().batch(); ++item) {
    for (int head = 0; head < symbols.num_heads(); ++head) {
      RowSkipping(options, ramp, scores, item, head, symbols).run();
    }
  }
}

PolicyPtr make_mass_skip(const FlashOmniOptions& options) {
  return std::make_unique<MassSkip>(options);
}

PolicyPtr make_spargeattn(const OptionReader& reader) {
  FlashOmniOptions options;
  options.tau_kv = 1 - reader.number("cdf", 0, 1).value_or(.98);
  options.sim_threshold = reader.number("sim-threshold", -1, 1).value_or(.6);
  options.subtract_k_mean = reader.flag("subtract-k-mean", true);
  return make_mass_skip(options);
}

}  // namespace flashomni
