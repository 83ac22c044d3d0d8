// dense.cpp -- the policy that leaves nothing out.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class DensePolicy : public SparsityPolicy {
 public:
  std::string_view name() const override { return "dense"; }
  bool is_dense() const override { return true; }
  void select(const PolicyContext&, SparseSymbols&) const override {}
};

}  // namespace

std::unique_ptr<SparsityPolicy> make_dense(const OptionReader&) {
  return std::make_unique<DensePolicy>();
}

}  // namespace flashomni
