// composition.cpp -- one policy that caches and one that skips, as one.
// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>

#include "policy/policies.h"

namespace flashomni {
namespace {

class Composition : public SparsityPolicy {
 public:
  Composition(std::string_view name, PolicyPtr skip, PolicyPtr cache,
              std::optional<FlashOmniOptions> selection)
      : name_(name), skip_(std::move(skip)), cache_(std::move(cache)), selection_(selection) {}

  std::string_view name() const override { return name_; }

  // What either reads. Subtracting the mean of K moves every logit of a row alike and leaves the
  // softmax over the row, hence C and G, as they are.
  std::optional<BlockScoreOptions> needs() const override {
    const auto of_skip = skip_->needs(), of_cache = cache_->needs();
    if (!of_skip || !of_cache) return of_skip ? of_skip : of_cache;
    return BlockScoreOptions{
        .similarity = of_skip->similarity || of_cache->similarity,
        .subtract_k_mean = of_skip->subtract_k_mean || of_cache->subtract_k_mean,
        .log_count_bias = of_skip->log_count_bias || of_cache->log_count_bias};
  }

  std::optional<FlashOmniOptions> selection() const override { return selection_; }

  // Cached blocks first: a skip policy then leaves their rows alone.
  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    cache_->select(context, symbols);
    skip_->select(context, symbols);
  }

  void select_update(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (traits().skips_on_updates) skip_->select(context, symbols);
  }

  // Where nothing is left to skip on dispatch steps, updates are what can be made cheaper.
  PolicyTraits traits() const override {
    PolicyTraits traits = cache_->traits();
    traits.skips_on_updates = traits.caches_all;
    return traits;
  }

  std::string limitation(const BlockGrid& q_grid,
                         std::span<const TokenPlace> places) const override {
    const std::string of_skip = skip_->limitation(q_grid, places);
    const std::string of_cache = cache_->limitation(q_grid, places);
    if (of_skip.empty() || of_cache.empty()) return of_skip + of_cache;
    return of_skip + "; " + of_cache;
  }

 private:
  std::string name_;
  PolicyPtr skip_, cache_;
  std::optional<FlashOmniOptions> selection_;
};

}  // namespace

PolicyPtr compose(std::string_view name, PolicyPtr skip, PolicyPtr cache,
                  std::optional<FlashOmniOptions> selection) {
  return std::make_unique<Composition>(name, std::move(skip), std::move(cache), selection);
}

}  // namespace flashomni
