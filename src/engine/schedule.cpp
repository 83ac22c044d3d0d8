// schedule.cpp -- which step of a generation is dense, an update, or a dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "flashomni/engine.h"

namespace flashomni {

std::string_view step_kind_name(StepKind kind) {
  switch (kind) {
    case StepKind::kDense: return "dense";
    case StepKind::kUpdate: return "update";
    case StepKind::kDispatch: return "dispatch";
  }
  return "?";
}

std::string_view layer_action_name(LayerAction action) {
  switch (action) {
    case LayerAction::kDense: return "dense";
    case LayerAction::kUpdate: return "update";
    case LayerAction::kSparse: return "sparse";
    case LayerAction::kForecast: return "forecast";
    case LayerAction::kRefresh: return "refresh";
  }
  return "?";
}

std::vector<StepKind> classify_steps(int num_steps, int warmup, int interval) {
  FO_CHECK(num_steps >= 1, "classify_steps: num_steps is %d, must be at least 1", num_steps);
  FO_CHECK(warmup >= 1, "classify_steps: warmup is %d, must be at least 1", warmup);
  FO_CHECK(interval >= 1, "classify_steps: interval is %d, must be at least 1", interval);
  std::vector<StepKind> kinds(static_cast<std::size_t>(num_steps));
  int steps_since_full = 0;
  for (int step = 0; step < num_steps; ++step) {
    const bool last = step == num_steps - 1;
    const bool full = step < warmup || steps_since_full == interval - 1 || last;
    steps_since_full = full ? 0 : steps_since_full + 1;
    // No dispatch step follows the last step: symbols made there would be for nobody.
    if (!full) {
      kinds[step] = StepKind::kDispatch;
    } else {
      kinds[step] = step >= warmup - 1 && !last ? StepKind::kUpdate : StepKind::kDense;
    }
  }
  return kinds;
}

}  // namespace flashomni
