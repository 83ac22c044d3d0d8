// pab.cpp -- pyramid attention broadcast: between updates no attention is computed, its projected
// output of the last update is used again; the MLPs are computed.
//
// Only at updates with broadcast-from <= step / num_steps < broadcast-to; outside, dispatch steps
// compute everything. The source broadcasts at timesteps 800 to 100 of 1000 (shares .2 to .9 of an
// even schedule), an image model's attention for 2 steps (interval 2).
// Source: Pyramid Attention Broadcast, arXiv:2408.12588.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class PyramidBroadcast : public SparsityPolicy {
 public:
  PyramidBroadcast(double from, double to) : from_(from), to_(to) {}

  std::string_view name() const override { return "pab"; }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    const double share = static_cast<double>(context.step) / context.num_steps;
    if (share >= from_ && share < to_) cache_everything(symbols);
  }

  PolicyTraits traits() const override {
    return {.caches_layers = false, .caches_all = true, .max_order = 0};
  }

 private:
  double from_, to_;
};

}  // namespace

PolicyPtr make_pab(const OptionReader& options) {
  return std::make_unique<PyramidBroadcast>(options.number("broadcast-from", 0, 1).value_or(.2),
                                            options.number("broadcast-to", 0, 1).value_or(.9));
}

}  // namespace flashomni
