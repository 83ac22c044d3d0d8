// policy.h -- what turns statistics of an update step into symbols.
//
// A policy is one small class: `needs` says what the engine must measure, `select` caches and skips
// blocks. docs/adding_a_policy.md walks through one of twenty lines.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/symbols.h"
#include "flashomni/token_order.h"

namespace flashomni {

// What a policy sees of one layer at an update step.
struct PolicyContext {
  int layer = 0, num_layers = 1;
  int branch = 0;  // classifier-free guidance: 0 = prompt, 1 = negative prompt
  int step = 0, num_steps = 1;
  double ramp = 1;                      // factor on thresholds, in [0, 1]: (step / num_steps)^p
  const BlockScores* scores = nullptr;  // measured as `needs` asked; nullptr if it asked nothing
  // Where the image tokens stand, in sequence order; empty if the model did not say.
  std::span<const TokenPlace> places = {};
  // If PolicyTraits::head_change: how far each head's attention output moved since the last update,
  // in L2, relative to its norm and per step; empty at the first update of a generation.
  std::span<const float> head_change = {};
};

// What a policy asks of the engine besides carrying out its symbols.
struct PolicyTraits {
  bool caches_layers = true;          // false: S_q does not apply, every layer's MLP is computed
  bool caches_all = false;            // select() leaves nothing live, or everything
  int max_order = kMaxForecastOrder;  // of forecasts, whatever EngineOptions::order says
  bool head_change = false;           // PolicyContext::head_change is wanted
  bool skips_on_updates = false;      // update steps attend by select_update()
  // > 0: a dispatch step reuses all layers after the first while the first one's residual is that
  // close to the last one computed (Engine::end_layer).
  double reuse_below = 0;
};

class SparsityPolicy {
 public:
  virtual ~SparsityPolicy() = default;
  virtual std::string_view name() const = 0;
  // The block statistics `select` reads, or nothing.
  virtual std::optional<BlockScoreOptions> needs() const { return std::nullopt; }
  // `symbols` comes in all live and leaves with blocks cached and skipped. Called once per layer,
  // branch and update step. A policy keeps no state between calls.
  virtual void select(const PolicyContext& context, SparseSymbols& symbols) const = 0;
  // If select() does what Backend::select_symbols does with some options, those: the backend then
  // selects, on a device without statistics on the host, and `needs` is not measured.
  virtual std::optional<FlashOmniOptions> selection() const { return std::nullopt; }
  // What the attention of the update step itself skips; must cache nothing.
  virtual void select_update(const PolicyContext&, SparseSymbols&) const {}
  virtual PolicyTraits traits() const { return {}; }
  // One sentence if the policy cannot do on such a sequence what its options ask for, else "".
  // The engine notes it as a fallback of the generation.
  virtual std::string limitation(const BlockGrid& /*q_grid*/,
                                 std::span<const TokenPlace> /*places*/) const {
    return {};
  }
  // True for a policy that never leaves anything out: the engine then runs every step dense.
  virtual bool is_dense() const { return false; }
};

// The raw scores behind the caching decision, [batch, num_heads, q_blocks], 0 at text blocks.
struct SelectionScores {
  std::vector<float> c, g;
};

// Caches and skips blocks of `symbols` (all live on entry). `ramp` multiplies both thresholds.
// Returns C and G before any sum over heads. Without text blocks nothing is cached.
SelectionScores select_flashomni(const FlashOmniOptions& options, double ramp,
                                 const BlockScores& scores, SparseSymbols& symbols);

// Option values as text, e.g. {"tau-q", "0.5"}; the CLI and preset files use the same names.
using PolicyOptions = std::map<std::string, std::string>;

// What a policy decides, and hence what it can be composed with.
enum class PolicyKind {
  kSkip,      // which key blocks a query block skips
  kCache,     // which query blocks are cached
  kComplete,  // both, or neither: composes with nothing
};

struct PolicyInfo {
  std::string name, summary;
  PolicyKind kind = PolicyKind::kComplete;
  std::vector<std::string_view> options;
};
std::vector<PolicyInfo> list_policies();
// Of one of the list, or of a composition "SKIP+CACHE" of a kSkip and a kCache policy, which has
// the options of both. Throws kInvalidArgument for an unknown name or two that do not compose.
PolicyInfo find_policy(std::string_view name);
// Throws as find_policy does, and for an unknown option or a value out of range.
std::unique_ptr<SparsityPolicy> make_policy(std::string_view name, const PolicyOptions& options);

}  // namespace flashomni
