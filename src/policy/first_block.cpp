// first_block.cpp -- reuses a whole step while the residual of the first layer changes little.
//
// On a dispatch step the first layer is computed. If its residual differs from that of the last
// step computed to its end by less than reuse-below (sum of absolute differences over sum of
// absolute values), the other layers add what they added then; else they are computed. Update steps
// are always computed, so that `interval` bounds how long a step is reused. Source: first-block
// cache of ParaAttention (FBCache) and diffusers, threshold .05 to .12; it looks at the image
// tokens alone, this at all.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class FirstBlock : public SparsityPolicy {
 public:
  explicit FirstBlock(double threshold) : threshold_(threshold) {}

  std::string_view name() const override { return "first-block"; }
  void select(const PolicyContext&, SparseSymbols&) const override {}
  PolicyTraits traits() const override { return {.reuse_below = threshold_}; }

 private:
  double threshold_;
};

}  // namespace

PolicyPtr make_first_block(const OptionReader& options) {
  return std::make_unique<FirstBlock>(options.number("reuse-below", 0, 1e6).value_or(.1));
}

}  // namespace flashomni
