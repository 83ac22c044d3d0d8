// registry.cpp -- the built-in policies: one row each.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "core/check.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

struct PolicyRow {
  std::string_view name, summary;
  std::array<std::string_view, 8> options;  // the empty ones are no options
  std::unique_ptr<SparsityPolicy> (*make)(const OptionReader& options);
};

constexpr PolicyRow kPolicies[] = {
    {"dense", "nothing is left out", {}, make_dense},
    {"flashomni",
     "caches image blocks that text neither looks at nor guides, skips keys of little mass",
     {"tau-q", "tau-kv", "scope", "sim-threshold", "keep-text-kv", "subtract-k-mean",
      "log-count-bias"},
     make_flashomni},
    {"static", "the same masks at every update, from a safetensors file", {"file"}, make_static},
    {"layer-cache",
     "every layer cached whole between updates (TaylorSeer; FORA with order 0)",
     {},
     make_layer_cache},
};

std::vector<std::string_view> options_of(const PolicyRow& row) {
  std::vector<std::string_view> options(row.options.begin(), row.options.end());
  std::erase(options, std::string_view());
  return options;
}

std::string joined(const std::vector<std::string_view>& names) {
  std::string text;
  for (std::string_view name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text.empty() ? "none" : text;
}

}  // namespace

std::vector<PolicyInfo> list_policies() {
  std::vector<PolicyInfo> policies;
  for (const PolicyRow& row : kPolicies) {
    policies.push_back({row.name, row.summary, options_of(row)});
  }
  return policies;
}

std::unique_ptr<SparsityPolicy> make_policy(std::string_view name, const PolicyOptions& options) {
  const auto row = std::ranges::find(kPolicies, name, &PolicyRow::name);
  if (row == std::end(kPolicies)) {
    std::vector<std::string_view> known;
    for (const PolicyRow& policy : kPolicies) known.push_back(policy.name);
    FO_FAIL(kInvalidArgument, "make_policy: there is no policy \"%s\"; there are %s",
            std::string(name).c_str(), joined(known).c_str());
  }
  const std::vector<std::string_view> allowed = options_of(*row);
  for (const auto& [option, value] : options) {
    FO_CHECK(std::ranges::find(allowed, option) != allowed.end(),
             "policy %s: there is no option \"%s\"; there are %s", row->name.data(), option.c_str(),
             joined(allowed).c_str());
  }
  return row->make(OptionReader(row->name, options));
}

}  // namespace flashomni
