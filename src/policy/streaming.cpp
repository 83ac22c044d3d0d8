// streaming.cpp -- a sink and a window: every image row keeps the first image blocks, those around
// its own, and the text.
//
// With image kv blocks counted from 0, a query block whose tokens lie in kv blocks a to b keeps the
// blocks below `sink` and those from a - window to b + window.
// Source: StreamingLLM, arXiv:2309.17453, without its causality.
// SPDX-License-Identifier: Apache-2.0
#include "policy/image_pairs.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

class Streaming : public SparsityPolicy {
 public:
  Streaming(int sink, int window) : sink_(sink), window_(window) {}

  std::string_view name() const override { return "streaming"; }

  void select(const PolicyContext&, SparseSymbols& symbols) const override {
    const int block = symbols.kv_grid().block();
    keep_image_pairs(symbols, [&](ImageRange q, ImageRange kv) {
      const int at = kv.first / block;
      return at < sink_ || (at >= q.first / block - window_ && at <= q.last() / block + window_);
    });
  }

 private:
  int sink_, window_;
};

}  // namespace

PolicyPtr make_streaming(const OptionReader& options) {
  constexpr int kMost = 1 << 20;
  return std::make_unique<Streaming>(options.integer("sink-blocks", 0, kMost).value_or(1),
                                     options.integer("window-blocks", 0, kMost).value_or(3));
}

}  // namespace flashomni
