// registry.cpp -- the built-in policies, one row each, and compositions of two.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "core/check.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

struct PolicyRow {
  std::string_view name, summary;
  PolicyKind kind;
  std::array<std::string_view, 8> options;  // the empty ones are no options
  PolicyPtr (*make)(const OptionReader& options);
};

constexpr PolicyRow kPolicies[] = {
    {"dense", "nothing is left out", PolicyKind::kComplete, {}, make_dense},
    {"flashomni",
     "caches image blocks that text neither looks at nor guides, skips keys of little mass",
     PolicyKind::kComplete,
     {"tau-q", "tau-kv", "scope", "sim-threshold", "keep-text-kv", "subtract-k-mean",
      "log-count-bias"},
     make_flashomni},
    {"static",
     "the same masks at every update, from a safetensors file",
     PolicyKind::kComplete,
     {"file"},
     make_static},

    {"spargeattn",
     "skips the keys of least pooled mass, except where blocks are unlike in themselves",
     PolicyKind::kSkip,
     {"cdf", "sim-threshold", "subtract-k-mean"},
     make_spargeattn},
    {"topk",
     "skips all but a share of the keys, by pooled logit",
     PolicyKind::kSkip,
     {"keep"},
     make_topk},
    {"streaming",
     "skips all but the first image blocks and a window around each",
     PolicyKind::kSkip,
     {"sink-blocks", "window-blocks"},
     make_streaming},
    {"sliding-tile",
     "skips all but a window of tiles around each tile, in a picture or a video",
     PolicyKind::kSkip,
     {"tile", "tile-window"},
     make_sliding_tile},
    {"radial",
     "skips more the farther frames are apart (in a picture: rows)",
     PolicyKind::kSkip,
     {"decay"},
     make_radial},
    {"arrow-window",
     "skips all but a band of image tokens around the diagonal",
     PolicyKind::kSkip,
     {"band"},
     make_arrow_window},

    {"guidance",
     "caches image blocks that text neither looks at nor guides",
     PolicyKind::kCache,
     {"tau-q", "scope"},
     make_guidance},
    {"taylorseer",
     "caches every layer whole between updates, extrapolated by order",
     PolicyKind::kCache,
     {},
     make_taylorseer},
    {"fora",
     "caches every layer whole between updates, as it was",
     PolicyKind::kCache,
     {},
     make_fora},
    {"layer-cache", "the older name of taylorseer", PolicyKind::kCache, {}, make_layer_cache},
    {"pab",
     "caches every attention between updates, over the steps between two shares of all",
     PolicyKind::kCache,
     {"broadcast-from", "broadcast-to"},
     make_pab},
    {"head-share",
     "caches the heads whose output moved little between the last two updates",
     PolicyKind::kCache,
     {"head-change"},
     make_head_share},
    {"first-block",
     "reuses a whole step while the residual of the first layer changes little",
     PolicyKind::kCache,
     {"reuse-below"},
     make_first_block},
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

PolicyInfo info_of(const PolicyRow& row) {
  return {std::string(row.name), std::string(row.summary), row.kind, options_of(row)};
}

std::string names_of(PolicyKind kind) {
  std::vector<std::string_view> names;
  for (const PolicyRow& row : kPolicies) {
    if (row.kind == kind) names.push_back(row.name);
  }
  return joined(names);
}

const PolicyRow& find_row(std::string_view name) {
  const auto row = std::ranges::find(kPolicies, name, &PolicyRow::name);
  if (row != std::end(kPolicies)) return *row;
  std::vector<std::string_view> known;
  for (const PolicyRow& policy : kPolicies) known.push_back(policy.name);
  FO_FAIL(kInvalidArgument, "make_policy: there is no policy \"%s\"; there are %s",
          std::string(name).c_str(), joined(known).c_str());
}

// One row, or the two of a composition.
struct Parts {
  const PolicyRow* only;  // nullptr: `skip` and `cache`
  const PolicyRow *skip, *cache;
};

Parts find_parts(std::string_view name) {
  const std::size_t plus = name.find('+');
  if (plus == std::string_view::npos) return {&find_row(name), nullptr, nullptr};
  const PolicyRow& skip = find_row(name.substr(0, plus));
  const PolicyRow& cache = find_row(name.substr(plus + 1));
  FO_CHECK(skip.kind == PolicyKind::kSkip && cache.kind == PolicyKind::kCache,
           "make_policy: \"%s\" must be SKIP+CACHE, with SKIP one of %s and CACHE one of %s",
           std::string(name).c_str(), names_of(PolicyKind::kSkip).c_str(),
           names_of(PolicyKind::kCache).c_str());
  return {nullptr, &skip, &cache};
}

// The options that are those of `row`.
PolicyOptions share_of(const PolicyRow& row, const PolicyOptions& options) {
  PolicyOptions share;
  for (const std::string_view option : options_of(row)) {
    const auto given = options.find(std::string(option));
    if (given != options.end()) share.insert(*given);
  }
  return share;
}

PolicyPtr make_row(const PolicyRow& row, const PolicyOptions& options) {
  return row.make(OptionReader(row.name, options));
}

}  // namespace

std::vector<PolicyInfo> list_policies() {
  std::vector<PolicyInfo> policies;
  for (const PolicyRow& row : kPolicies) policies.push_back(info_of(row));
  return policies;
}

PolicyInfo find_policy(std::string_view name) {
  const auto [only, skip, cache] = find_parts(name);
  if (only) return info_of(*only);
  PolicyInfo info{std::string(name),
                  std::string(skip->summary) + "; " + std::string(cache->summary),
                  PolicyKind::kComplete, options_of(*skip)};
  for (const std::string_view option : options_of(*cache)) info.options.push_back(option);
  return info;
}

PolicyPtr make_policy(std::string_view name, const PolicyOptions& options) {
  const std::vector<std::string_view> allowed = find_policy(name).options;
  for (const auto& [option, value] : options) {
    FO_CHECK(std::ranges::find(allowed, option) != allowed.end(),
             "policy %s: there is no option \"%s\"; there are %s", std::string(name).c_str(),
             option.c_str(), joined(allowed).c_str());
  }
  const auto [only, skip, cache] = find_parts(name);
  if (only) return make_row(*only, options);
  return compose(name, make_row(*skip, share_of(*skip, options)),
                 make_row(*cache, share_of(*cache, options)));
}

}  // namespace flashomni
