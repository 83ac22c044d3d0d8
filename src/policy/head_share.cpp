// head_share.cpp -- caches a head, text rows included, if its attention output moved little.
//
// Head h of a layer is cached until the next update if |O_h - O_h'| / |O_h| / steps < threshold,
// O_h' being its output at the update before. A cached head costs no projection of Q, K or V.
// Source: DiTFastAttnV2, arXiv:2503.22796, sharing of heads between steps. It calibrates each
// (layer, step, head) offline by its error; this measures while it draws.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class HeadShare : public SparsityPolicy {
 public:
  explicit HeadShare(double threshold) : threshold_(threshold) {}

  std::string_view name() const override { return "head-share"; }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    for (std::size_t head = 0; head < context.head_change.size(); ++head) {
      if (context.head_change[head] < threshold_ * context.ramp) {
        cache_head(static_cast<int>(head), symbols);
      }
    }
  }

  PolicyTraits traits() const override {
    return {.caches_layers = false, .head_change = threshold_ > 0};
  }

 private:
  static void cache_head(int head, SparseSymbols& symbols) {
    for (int q_block = 0; q_block < symbols.q_grid().num_blocks(); ++q_block) {
      symbols.cache(0, head, q_block);
    }
  }

  double threshold_;
};

}  // namespace

PolicyPtr make_head_share(const OptionReader& options) {
  return std::make_unique<HeadShare>(options.number("head-change", 0, 1e6).value_or(.06));
}

}  // namespace flashomni
