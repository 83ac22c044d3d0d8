// policy_runner.h -- asks a policy for the symbols of the layer whose Q and K are at hand.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "engine/joint_attention.h"
#include "flashomni/policy.h"

namespace flashomni {

// By the backend, where the policy's selection is one that backends know (SparsityPolicy::
// selection), else on the host by block statistics.
class PolicyRunner {
 public:
  explicit PolicyRunner(const SparsityPolicy& policy) : policy_(policy) {}

  // A new generation, whose sequence the backend may know the selection for.
  void begin() { selection_ = policy_.selection(); }
  // Measures what the policy reads on the host, if anything, into `context`.
  void measure(JointAttention& joint, PolicyContext& context);
  // Replaces `symbols`. If the backend turns out not to know the selection for such a sequence, the
  // host selects, also later in the generation, and `limitation` gets the reason.
  void select(JointAttention& joint, PolicyContext& context, const SparseSymbols& all_live,
              SparseSymbols& symbols, std::string& limitation);

 private:
  const SparsityPolicy& policy_;
  std::optional<FlashOmniOptions> selection_;  // while the backend selects
  BlockScores scores_;
};

}  // namespace flashomni
