// flashomni.cpp -- the policy of arXiv:2509.25401: caching by text composed with skipping by mass.
// SPDX-License-Identifier: Apache-2.0
#include "policy/policies.h"

namespace flashomni {

SelectionScores select_flashomni(const FlashOmniOptions& options, double ramp,
                                 const BlockScores& scores, SparseSymbols& symbols) {
  SelectionScores result = cache_unguided(options, ramp, scores, symbols);
  skip_low_mass(options, ramp, scores, symbols);
  return result;
}

PolicyPtr make_flashomni(const OptionReader& reader) {
  FlashOmniOptions options;
  // Above 1 nothing more could be selected; 0 and below select nothing.
  options.tau_q = reader.number("tau-q", -1, 1).value_or(options.tau_q);
  options.tau_kv = reader.number("tau-kv", -1, 1).value_or(options.tau_kv);
  options.scope = reader.scope("scope", options.scope);
  options.sim_threshold = reader.number("sim-threshold", -1, 1);
  options.keep_text_kv = reader.flag("keep-text-kv", options.keep_text_kv);
  options.subtract_k_mean = reader.flag("subtract-k-mean", options.subtract_k_mean);
  options.log_count_bias = reader.flag("log-count-bias", options.log_count_bias);
  return compose("flashomni", make_mass_skip(options), make_text_cache(options), options);
}

}  // namespace flashomni
