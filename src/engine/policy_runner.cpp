// policy_runner.cpp -- asks a policy for the symbols of the layer whose Q and K are at hand.
// SPDX-License-Identifier: Apache-2.0
#include "engine/policy_runner.h"

#include "flashomni/error.h"

namespace flashomni {

void PolicyRunner::measure(JointAttention& joint, PolicyContext& context) {
  if (selection_) return;
  if (const auto needs = policy_.needs()) {
    joint.score(*needs, scores_);
    context.scores = &scores_;
  }
}

void PolicyRunner::select(JointAttention& joint, PolicyContext& context,
                          const SparseSymbols& all_live, SparseSymbols& symbols,
                          std::string& limitation) {
  if (selection_) {
    try {
      symbols = joint.select(*selection_, context.ramp);
      return;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      limitation = error.what();
      selection_.reset();
      measure(joint, context);
    }
  }
  symbols = all_live;
  policy_.select(context, symbols);
}

}  // namespace flashomni
