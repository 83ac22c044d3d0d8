// stats.cpp -- sums over one generation of what the symbols left undone.
// SPDX-License-Identifier: Apache-2.0
#include "engine/stats.h"

namespace flashomni {

void StatsCounter::count_step(StepKind kind) {
  switch (kind) {
    case StepKind::kDense: ++steps_.dense_steps; break;
    case StepKind::kUpdate: ++steps_.update_steps; break;
    case StepKind::kDispatch: ++steps_.dispatch_steps; break;
  }
}

void StatsCounter::count_dense_layer(std::int64_t pairs) {
  pairs_ += static_cast<double>(pairs);
  live_pairs_ += static_cast<double>(pairs);
}

void StatsCounter::count_dispatch_layer(const SymbolStats& symbols) {
  cached_ += symbols.cached_fraction();
  skipped_ += symbols.skipped_fraction();
  ++dispatched_layers_;
  pairs_ += static_cast<double>(symbols.pairs);
  live_pairs_ += static_cast<double>(symbols.live_pairs);
}

void StatsCounter::count_forecast_layer(std::int64_t pairs) {
  cached_ += 1;
  ++dispatched_layers_;
  pairs_ += static_cast<double>(pairs);
}

EngineStats StatsCounter::totals(int layers_cached) const {
  EngineStats stats = steps_;
  if (dispatched_layers_ > 0) {
    stats.cached_fraction = cached_ / static_cast<double>(dispatched_layers_);
    stats.skipped_fraction = skipped_ / static_cast<double>(dispatched_layers_);
  }
  if (pairs_ > 0) stats.attention_sparsity = 1 - live_pairs_ / pairs_;
  stats.layers_cached = layers_cached;
  return stats;
}

}  // namespace flashomni
