// taylorseer.cpp -- every layer cached whole on dispatch steps: its modules' outputs are
// extrapolated to the forecast's order (TaylorSeer) or taken as they were (FORA).
//
// With no live block a layer's live fraction is 0, which every S_q admits.
// Source: TaylorSeer, arXiv:2503.06923; FORA, arXiv:2407.01425.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class WholeLayers : public SparsityPolicy {
 public:
  WholeLayers(std::string_view name, int max_order) : name_(name), max_order_(max_order) {}

  std::string_view name() const override { return name_; }

  void select(const PolicyContext&, SparseSymbols& symbols) const override {
    cache_everything(symbols);
  }

  PolicyTraits traits() const override { return {.caches_all = true, .max_order = max_order_}; }

 private:
  std::string_view name_;
  int max_order_;
};

}  // namespace

void cache_everything(SparseSymbols& symbols) {
  const BlockGrid& grid = symbols.q_grid();
  for (int item = 0; item < grid.batch(); ++item) {
    for (int head = 0; head < symbols.num_heads(); ++head) {
      for (int q_block = 0; q_block < grid.num_blocks(); ++q_block) {
        symbols.cache(item, head, q_block);
      }
    }
  }
}

PolicyPtr make_taylorseer(const OptionReader&) {
  return std::make_unique<WholeLayers>("taylorseer", kMaxForecastOrder);
}

PolicyPtr make_fora(const OptionReader&) { return std::make_unique<WholeLayers>("fora", 0); }

PolicyPtr make_layer_cache(const OptionReader&) {
  return std::make_unique<WholeLayers>("layer-cache", kMaxForecastOrder);
}

}  // namespace flashomni
