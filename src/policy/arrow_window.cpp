// arrow_window.cpp -- a band of image tokens around the diagonal; with the text rows and columns
// that stay, the mask looks like an arrow.
//
// Query token i and key token j of the image see each other if |i - j| <= band / 2 * image tokens;
// a pair of blocks is used if any pair of its tokens is. Source: DiTFastAttnV2, arXiv:2503.22796
// (half width (S - 512) / (2 f), so band = 1 / f); one band for all heads here, the choice per head
// is the policy head-share.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "policy/image_pairs.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

class ArrowWindow : public SparsityPolicy {
 public:
  explicit ArrowWindow(double band) : band_(band) {}

  std::string_view name() const override { return "arrow-window"; }

  void select(const PolicyContext&, SparseSymbols& symbols) const override {
    int image_tokens = 0;
    for (const ImageRange& range : image_ranges(symbols.q_grid(), 0)) image_tokens += range.count;
    const double half_width = band_ / 2 * image_tokens;
    keep_image_pairs(symbols, [&](ImageRange q, ImageRange kv) {
      return std::max(kv.first - q.last(), q.first - kv.last()) <= half_width;
    });
  }

 private:
  double band_;
};

}  // namespace

PolicyPtr make_arrow_window(const OptionReader& options) {
  return std::make_unique<ArrowWindow>(options.number("band", 0, 2).value_or(.5));
}

}  // namespace flashomni
