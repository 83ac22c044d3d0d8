// run_recorder.cpp -- fills the decisions of a RunRecord while a generation runs.
// SPDX-License-Identifier: Apache-2.0
#include "pipeline/run_recorder.h"

namespace flashomni {

RunRecorder::RunRecorder(RunRecord& record, FluxTransformer& transformer, const Engine& engine,
                         MeteredBackend& backend)
    : record_(record),
      transformer_(transformer),
      engine_(engine),
      backend_(backend),
      latest_(static_cast<std::size_t>(record.num_branches) * record.num_layers, -1) {
  const std::size_t steps = static_cast<std::size_t>(record.request.steps);
  record_.layers.reserve(steps * latest_.size());
  transformer_.set_layer_callback([this](int layer) { end_layer(layer); });
}

RunRecorder::~RunRecorder() { transformer_.set_layer_callback({}); }

void RunRecorder::begin_branch(int branch) {
  branch_ = branch;
  macs_before_ = macs();
  start_ = Clock::now();
}

void RunRecorder::end_layer(int layer) {
  if (backend_.device_timer()) backend_.synchronize({});  // else a layer would take no time
  const Clock::time_point now = Clock::now();
  const double macs_now = macs();
  const LayerAction action = engine_.layer_action(layer);
  record_.layers.push_back({.action = action,
                            .symbols = symbols_of(layer, action),
                            .seconds = std::chrono::duration<float>(now - start_).count(),
                            .macs = static_cast<float>(macs_now - macs_before_)});
  macs_before_ = macs_now;
  start_ = Clock::now();  // copying symbols is no part of the next layer
}

int RunRecorder::symbols_of(int layer, LayerAction action) {
  if (action == LayerAction::kDense) return -1;
  int& latest = latest_[static_cast<std::size_t>(branch_) * record_.num_layers + layer];
  if (action == LayerAction::kUpdate) {
    latest = static_cast<int>(record_.symbols.size());
    record_.symbols.push_back(engine_.symbols(layer, branch_));
  }
  return latest;
}

// What a policy measures is no work of the layer.
double RunRecorder::macs() const { return backend_.macs() - backend_.macs(OpKind::kPolicy); }

}  // namespace flashomni
