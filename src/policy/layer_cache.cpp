// layer_cache.cpp -- every layer cached whole on dispatch steps, as TaylorSeer does (order >= 1)
// and FORA (order 0): with no live block a layer's live fraction is 0, which every S_q admits.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class LayerCachePolicy : public SparsityPolicy {
 public:
  std::string_view name() const override { return "layer-cache"; }

  void select(const PolicyContext&, SparseSymbols& symbols) const override {
    const BlockGrid& grid = symbols.q_grid();
    for (int item = 0; item < grid.batch(); ++item) {
      for (int head = 0; head < symbols.num_heads(); ++head) {
        for (int q_block = 0; q_block < grid.num_blocks(); ++q_block) {
          symbols.cache(item, head, q_block);
        }
      }
    }
  }
};

}  // namespace

std::unique_ptr<SparsityPolicy> make_layer_cache(const OptionReader&) {
  return std::make_unique<LayerCachePolicy>();
}

}  // namespace flashomni
