// stats.h -- sums over one generation of what the symbols left undone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "flashomni/engine.h"

namespace flashomni {

class StatsCounter {
 public:
  void count_step(StepKind kind);
  // A layer that computes all of its `pairs`, outside a dispatch step ...
  void count_dense_layer(std::int64_t pairs);
  // ... and one on a dispatch step.
  void count_dispatch_layer(const SymbolStats& symbols);
  void count_forecast_layer(std::int64_t pairs);
  // Of a layer already counted as dense: pairs that it skips.
  void count_skipped_pairs(std::int64_t pairs) { live_pairs_ -= static_cast<double>(pairs); }
  void count_reused_pass() { ++steps_.reused_passes; }
  EngineStats totals(int layers_cached) const;

 private:
  EngineStats steps_;
  double cached_ = 0, skipped_ = 0;  // sums of fractions over layers of dispatch steps
  std::int64_t dispatched_layers_ = 0;
  double pairs_ = 0, live_pairs_ = 0;  // double: 50 steps of 119 K tokens pass 2^53 only slightly
};

}  // namespace flashomni
