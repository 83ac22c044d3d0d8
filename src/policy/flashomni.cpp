// flashomni.cpp -- the policy of arXiv:2509.25401; its formulas are in select_flashomni.cpp.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {
namespace {

class FlashOmniPolicy : public SparsityPolicy {
 public:
  explicit FlashOmniPolicy(const FlashOmniOptions& options) : options_(options) {}

  std::string_view name() const override { return "flashomni"; }

  std::optional<BlockScoreOptions> needs() const override {
    if (options_.tau_q <= 0 && options_.tau_kv <= 0) return std::nullopt;
    return BlockScoreOptions{.similarity = options_.sim_threshold.has_value(),
                             .subtract_k_mean = options_.subtract_k_mean,
                             .log_count_bias = options_.log_count_bias};
  }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (context.scores) select_flashomni(options_, context.ramp, *context.scores, symbols);
  }

  std::string limitation(const BlockGrid& q_grid) const override {
    if (options_.tau_q <= 0 || q_grid.has_text(0)) return {};
    return "no text tokens: caching needs a text/image split, only keys are skipped";
  }

 private:
  FlashOmniOptions options_;
};

}  // namespace

std::unique_ptr<SparsityPolicy> make_flashomni(const OptionReader& reader) {
  FlashOmniOptions options;
  // Above 1 nothing more could be selected; 0 and below select nothing.
  options.tau_q = reader.number("tau-q", -1, 1).value_or(options.tau_q);
  options.tau_kv = reader.number("tau-kv", -1, 1).value_or(options.tau_kv);
  options.sim_threshold = reader.number("sim-threshold", -1, 1);
  options.keep_text_kv = reader.flag("keep-text-kv", options.keep_text_kv);
  options.subtract_k_mean = reader.flag("subtract-k-mean", options.subtract_k_mean);
  options.log_count_bias = reader.flag("log-count-bias", options.log_count_bias);
  if (const std::string* scope = reader.find("scope")) {
    if (*scope != "head" && *scope != "layer") reader.reject("scope", "head or layer");
    options.scope = *scope == "head" ? PolicyScope::kHead : PolicyScope::kLayer;
  }
  return std::make_unique<FlashOmniPolicy>(options);
}

}  // namespace flashomni
