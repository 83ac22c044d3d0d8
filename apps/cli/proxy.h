// proxy.h -- what a sparse setting should lose and save, judged by one dense run of the model.
//
// Two things go wrong on a dispatch step: a live row misses the softmax of skipped key blocks, and
// a cached row is a forecast. Both are known from the dense run: block recall, the share of the
// true softmax that the kept pairs hold, and the distance of the forecast to the true output. What
// a wrong step does to the steps after it is not: the proxy orders settings, it predicts no dB.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "attention_trace.h"
#include "flashomni/engine.h"

namespace flashomni::cli {

// What a policy selects at one step of the dense run.
struct Choice {
  SparseSymbols dispatch;  // for the dispatch steps after an update here
  SparseSymbols update;    // of an update here itself; only if PolicyTraits::skips_on_updates
};

// One layer of one branch of the dense run.
struct LayerTrace {
  double macs = 0;        // of one step
  OutputProducts output;  // of all steps
  // By step, empty before the first update of any schedule:
  std::vector<std::vector<float>> masses;    // block_masses()
  std::vector<std::vector<Choice>> choices;  // [step][policy]
};

struct RunTrace {
  int num_steps = 0, head_dim = 0, stride = 1;
  int layers_of_model = 0, layers_seen = 0;  // of every branch
  double macs = 0;                           // of one step, all branches, and all layers of them
  double macs_outside_layers = 0;            // of one step, all branches
  std::vector<PolicyTraits> policies;
  std::vector<LayerTrace> layers;  // seen, of all branches
};

struct Proxy {
  // The mean share of the softmax that live rows keep, on steps that leave something out; NaN if no
  // row was live on them.
  double recall = 0;
  // The relative L2 distance of the forecasts of cached rows to the true outputs, the root of the
  // mean square over layers and steps; NaN if nothing was cached.
  double forecast_error = 0;
  // The relative error of the attention output of a layer, the root of the mean square over all
  // layers and steps: cached rows by their forecast, live rows by twice the softmax they miss.
  double loss = 0;
  double macs_ratio = 1;  // multiply-adds over those of the dense run
};

// `policy` counts in run.policies; `options` are the schedule, the forecast and the layer cache.
Proxy judge(const RunTrace& run, std::size_t policy, const EngineOptions& options);

}  // namespace flashomni::cli
