// static.cpp -- masks from a safetensors file, the same at every update.
//
// Tensors `cache` [num_heads, q_blocks] and `skip` [num_heads, q_blocks, kv_blocks], u8, with or
// without a leading batch axis; `layer.L.cache` and `layer.L.skip` where layers differ. An absent
// tensor leaves everything live.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "flashomni/safetensors.h"

#include "core/check.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

class StaticPolicy : public SparsityPolicy {
 public:
  explicit StaticPolicy(const std::string& path) : path_(path), file_(path) {
    const auto is_mask = [](const std::string& name) {
      return name.ends_with("cache") || name.ends_with("skip");
    };
    FO_CHECK(std::ranges::any_of(file_.names(), is_mask),
             "policy static: %s has neither cache nor skip tensors", path.c_str());
  }

  std::string_view name() const override { return "static"; }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    const index_t batch = symbols.q_grid().batch(), num_heads = symbols.num_heads();
    const index_t q_blocks = symbols.q_grid().num_blocks();
    const index_t kv_blocks = symbols.kv_grid().num_blocks();
    const ConstTensorView cache = mask("cache", context.layer, {batch, num_heads, q_blocks});
    const ConstTensorView skip =
        mask("skip", context.layer, {batch, num_heads, q_blocks, kv_blocks});
    symbols = SparseSymbols::from_masks(symbols.q_grid(), symbols.kv_grid(), symbols.num_heads(),
                                        cache, skip);
  }

 private:
  // The mask of one layer in the shape `wanted`, or {} if the file has none.
  ConstTensorView mask(const std::string& kind, int layer,
                       std::initializer_list<index_t> wanted) const {
    std::string name = "layer." + std::to_string(layer) + "." + kind;
    if (!file_.contains(name)) name = kind;
    if (!file_.contains(name)) return {};
    const ConstTensorView tensor = file_.tensor(name);
    const Layout full(wanted);
    const Layout one(std::span<const index_t>(wanted.begin() + 1, wanted.size() - 1));
    const bool fits = tensor.layout.sizes == full.sizes ||
                      (*wanted.begin() == 1 && tensor.layout.sizes == one.sizes);
    FO_CHECK(fits, "policy static: %s in %s is %s, layer %d needs %s", name.c_str(), path_.c_str(),
             tensor.layout.to_string().c_str(), layer, full.to_string().c_str());
    return tensor.reshape(wanted);
  }

  std::string path_;
  SafetensorsFile file_;
};

}  // namespace

std::unique_ptr<SparsityPolicy> make_static(const OptionReader& options) {
  const std::string* path = options.find("file");
  FO_CHECK(path, "policy static: the option \"file\" is missing");
  return std::make_unique<StaticPolicy>(*path);
}

}  // namespace flashomni
