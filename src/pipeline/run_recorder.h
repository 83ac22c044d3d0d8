// run_recorder.h -- fills the decisions of a RunRecord while a generation runs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <vector>

#include "flashomni/record.h"

#include "backend/metered.h"

namespace flashomni {

// Listens to the layers of `transformer` while it lives.
class RunRecorder {
 public:
  // After engine.begin().
  RunRecorder(RunRecord& record, FluxTransformer& transformer, const Engine& engine,
              MeteredBackend& backend);
  ~RunRecorder();
  RunRecorder(const RunRecorder&) = delete;
  RunRecorder& operator=(const RunRecorder&) = delete;

  // Before the forward pass of a branch.
  void begin_branch(int branch);

 private:
  using Clock = std::chrono::steady_clock;
  void end_layer(int layer);
  int symbols_of(int layer, LayerAction action);
  double macs() const;

  RunRecord& record_;
  FluxTransformer& transformer_;
  const Engine& engine_;
  MeteredBackend& backend_;
  std::vector<int> latest_;  // [branch, layer]: index of the symbols of the last update, or -1
  int branch_ = 0;
  double macs_before_ = 0;
  Clock::time_point start_;
};

}  // namespace flashomni
