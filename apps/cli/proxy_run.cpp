#include "proxy_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "flashomni/error.h"
#include "progress.h"

namespace flashomni::cli {
namespace {

constexpr int kLeastStride = 8, kMostRows = 256;  // sampled of a sequence; always one a block
constexpr double kMostBytes = 1 << 30;
constexpr double kMostMacs = 6e11;  // of exact softmaxes, minutes of one core

Tensor on_host(Backend& backend, ConstTensorView value) {
  if (value.device.type == DeviceType::kCpu) return convert(value, DType::kF32);
  const Tensor copy = Tensor::host(value.dtype, value.layout);
  backend.copy(value, copy, {});
  backend.synchronize({});
  return convert(copy, DType::kF32);
}

// How many layers of every branch can be looked at.
int layers_that_fit(const RunTrace& run, const SparseSymbols& symbols, int branches) {
  const double heads = symbols.num_heads(), hidden = heads * run.head_dim;
  const BlockGrid& grid = symbols.q_grid();
  double rows = 0;
  for (int i = 0; i < grid.num_blocks(); ++i) {
    rows += static_cast<double>(sampled_rows(grid, i, run.stride).size());
  }
  const double blocks = grid.num_blocks(), steps = run.num_steps;
  const double bytes =
      steps * (4 * rows * hidden + 4 * heads * blocks * blocks + 8 * heads * blocks * steps);
  const double macs = steps * rows * grid.num_tokens() * hidden;
  const double fit = std::min(kMostBytes / bytes, kMostMacs / macs) / branches;
  return std::clamp(static_cast<int>(fit), 1, run.layers_of_model);
}

class Watcher {
 public:
  Watcher(const Session& session, const Engine& engine, const std::vector<Sparsity>& settings,
          int first_update)
      : session_(session), engine_(engine), settings_(settings), first_update_(first_update) {
    run_.num_steps = session.request.steps;
    run_.head_dim = session.pipeline.config().head_dim;
    run_.layers_of_model = session.pipeline.config().total_layers();
    for (const Sparsity& setting : settings) {
      policies_.push_back(make_policy(setting.policy, setting.policy_options));
      run_.policies.push_back(policies_.back()->traits());
    }
  }

  void watch(const AttendedLayer& seen) {
    if (run_.layers.empty()) begin();
    const int slot = slots_[seen.layer];
    if (slot < 0) return;
    LayerTrace& layer = run_.layers[seen.branch * run_.layers_seen + slot];
    layer.output.add(on_host(engine_.backend(), seen.o));
    if (seen.step < first_update_) return;
    const BlockGrid& grid = all_live_.q_grid();
    layer.masses[seen.step] =
        block_masses(on_host(engine_.backend(), seen.q), on_host(engine_.backend(), seen.k), grid,
                     all_live_.kv_grid(), run_.stride);
    for (std::size_t i = 0; i < policies_.size(); ++i) {
      layer.choices[seen.step].push_back(choose(i, seen));
    }
    scored_.reset();
  }

  RunTrace finish(const RunRecord& record, const GenerateResult& result) {
    run_.macs = result.macs_total / run_.num_steps;
    run_.macs_outside_layers = run_.macs;
    for (int branch = 0; branch < record.num_branches; ++branch) {
      for (int layer = 0; layer < record.num_layers; ++layer) {
        const double macs = record.layer(0, branch, layer).macs;
        run_.macs_outside_layers -= macs;
        const int slot = slots_[layer];
        if (slot >= 0) run_.layers[branch * run_.layers_seen + slot].macs = macs;
      }
    }
    return std::move(run_);
  }

 private:
  // At the first layer of the run, when the engine knows the sequence.
  void begin() {
    all_live_ = engine_.symbols(0, 0);
    const BlockGrid& grid = all_live_.q_grid();
    run_.stride = std::max(kLeastStride, (grid.num_tokens() + kMostRows - 1) / kMostRows);
    const int branches = session_.request.cfg == 1 ? 1 : 2;
    run_.layers_seen = layers_that_fit(run_, all_live_, branches);
    slots_.assign(run_.layers_of_model, -1);
    for (int slot = 0; slot < run_.layers_seen; ++slot) {
      slots_[(2 * slot + 1) * run_.layers_of_model / (2 * run_.layers_seen)] = slot;
    }
    const OutputProducts none(grid, all_live_.num_heads(), run_.num_steps, run_.stride);
    for (int i = 0; i < branches * run_.layers_seen; ++i) {
      run_.layers.push_back({.output = none,
                             .masses = std::vector<std::vector<float>>(run_.num_steps),
                             .choices = std::vector<std::vector<Choice>>(run_.num_steps)});
    }
  }

  // As the engine asks a policy at an update.
  Choice choose(std::size_t policy, const AttendedLayer& seen) {
    PolicyContext context{.layer = seen.layer,
                          .num_layers = run_.layers_of_model,
                          .branch = seen.branch,
                          .step = seen.step,
                          .num_steps = run_.num_steps,
                          .ramp = std::pow(static_cast<double>(seen.step) / run_.num_steps,
                                           settings_[policy].engine.ramp),
                          .places = engine_.places()};
    if (const auto needs = policies_[policy]->needs()) {
      if (scored_ != needs) {
        engine_.backend().block_scores(seen.q, seen.k, all_live_.q_grid(), all_live_.kv_grid(),
                                       *needs, scores_, {});
      }
      scored_ = needs;
      context.scores = &scores_;
    }
    Choice choice{all_live_, {}};
    policies_[policy]->select(context, choice.dispatch);
    if (run_.policies[policy].skips_on_updates) {
      choice.update = all_live_;
      policies_[policy]->select_update(context, choice.update);
    }
    return choice;
  }

  const Session& session_;
  const Engine& engine_;
  const std::vector<Sparsity>& settings_;
  const int first_update_;
  std::vector<std::unique_ptr<SparsityPolicy>> policies_;
  SparseSymbols all_live_;
  std::vector<int> slots_;  // of each layer of the model: its place among those seen, or -1
  BlockScores scores_;
  std::optional<BlockScoreOptions> scored_;  // what scores_ holds of the layer seen now
  RunTrace run_;
};

// Stops a run that cannot end in time: after a step if all of them would take twice as long.
class Deadline {
 public:
  explicit Deadline(double seconds) : seconds_(seconds) {}  // from now on
  void check(const StepProgress& step) const {
    const double taken =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double in_all = taken / (step.step + 1) * step.num_steps;
    if (taken <= seconds_ && in_all <= 2 * seconds_) return;
    char text[200];
    std::snprintf(text, sizeof text,
                  "tune: one dense run of this size takes about %.2g s here, more than half the "
                  "budget; --budget %.0fs leaves time for full runs",
                  in_all, std::ceil(in_all * 8));
    throw Error(ErrorCode::kUnsupported, text);
  }

 private:
  const double seconds_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

RunTrace watch_dense_run(Session& session, const std::vector<Sparsity>& policies, int first_update,
                         double seconds) {
  Sparsity dense = dense_sparsity();
  dense.engine.block_q = policies.front().engine.block_q;
  dense.engine.block_kv = policies.front().engine.block_kv;
  dense.engine.token_order = policies.front().engine.token_order;
  warm_up(session);
  const auto engine = make_engine(session.pipeline.backend(), dense);
  Watcher watcher(session, *engine, policies, first_update);
  engine->set_attention_observer([&](const AttendedLayer& layer) { watcher.watch(layer); });
  const Deadline deadline(seconds);
  Progress progress("Watching a dense run", session.request.steps);
  RunRecord record;
  const auto show = [&](const StepProgress& step) {
    progress.show(step.step + 1, "");
    deadline.check(step);
  };
  const GenerateResult result =
      session.pipeline.generate(session.request, *engine, show, {}, &record);
  return watcher.finish(record, result);
}

}  // namespace flashomni::cli
