// engine.cpp -- one generation: steps, branches, and for each layer dense, update or dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/engine.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/check.h"
#include "engine/checks.h"
#include "engine/forecast.h"
#include "engine/joint_attention.h"
#include "engine/layer_state.h"
#include "engine/policy_runner.h"
#include "engine/stats.h"
#include "engine/step_reuse.h"

namespace flashomni {

struct Engine::State {
  State(Backend& backend, const EngineOptions& options, std::unique_ptr<SparsityPolicy> policy)
      : backend(backend), options(options), policy(std::move(policy)), runner(*this->policy) {
    traits = this->policy->traits();
    this->options.order = std::min(options.order, traits.max_order);
  }

  LayerState& layer_state(int layer) { return layers[layer_index(layer, branch)]; }
  std::size_t layer_index(int layer, int of_branch) const {
    return static_cast<std::size_t>(of_branch) * shape.num_layers + layer;
  }
  LayerAction action(const LayerState& layer) const;
  bool keeps_modules(int layer) {
    return kind == StepKind::kUpdate && layer_state(layer).mode == LayerMode::kLayerCache;
  }
  void count_layers(int first, int last);
  double ramp() const {
    return std::pow(static_cast<double>(step) / static_cast<double>(kinds.size()), options.ramp);
  }
  void miss_reuse();
  void fall_back(int layer, const std::string& reason);

  void run_dense(int layer, std::span<const AttentionStream> streams, const RopeTables& rope);
  void run_update(int layer, std::span<const AttentionStream> streams, const RopeTables& rope);
  void run_dispatch(int layer, std::span<const AttentionStream> streams, const RopeTables& rope);
  PolicyContext measure(int layer);
  const AttentionPlan& update_plan(const PolicyContext& context);
  void select_symbols(PolicyContext& context, LayerState& state);

  Backend& backend;
  EngineOptions options;  // `order` no higher than the policy's
  const std::unique_ptr<SparsityPolicy> policy;
  PolicyRunner runner;
  PolicyTraits traits;
  AttentionObserver observer;

  // One generation.
  SequenceShape shape;
  std::vector<StepKind> kinds;  // of every step
  SparseSymbols all_live;
  std::optional<JointAttention> joint;
  CoefficientTable coefficients;
  std::vector<LayerState> layers;     // [branch, layer]
  AttentionPlan update_attention;     // of one layer, if the policy skips on updates
  std::vector<StepReuse> step_reuse;  // of every branch, if the policy reuses steps
  StatsCounter counter;
  std::vector<Fallback> fallbacks;

  // One step of one branch.
  int step = -1, branch = 0;
  StepKind kind = StepKind::kDense;
  std::vector<bool> branch_done;
  bool reuse_undecided = false;  // layers after the first are neither reused nor computed yet
  bool is_reused = false;        // they are reused
};

Engine::Engine(Backend& backend, const EngineOptions& options,
               std::unique_ptr<SparsityPolicy> policy) {
  check_engine_options(options);
  FO_CHECK(policy != nullptr, "engine: policy is missing; make_policy(\"dense\", {}) runs dense");
  state_ = std::make_unique<State>(backend, options, std::move(policy));
}

Engine::~Engine() = default;

void Engine::begin(const SequenceShape& shape, int num_steps, int num_branches) {
  check_sequence(shape);
  FO_CHECK(num_branches >= 1, "begin: num_branches is %d, must be at least 1", num_branches);
  State& s = *state_;
  s.kinds = classify_steps(num_steps, s.options.warmup, s.options.interval);
  if (s.policy->is_dense()) std::ranges::fill(s.kinds, StepKind::kDense);
  s.shape = shape;
  s.joint.reset();
  s.all_live = SparseSymbols(BlockGrid(s.options.block_q, 1, shape.segments),
                             BlockGrid(s.options.block_kv, 1, shape.segments), shape.num_heads);
  s.joint.emplace(s.backend, shape, s.all_live);
  s.coefficients = CoefficientTable(s.options, num_steps);
  s.layers = std::vector<LayerState>(static_cast<std::size_t>(num_branches) * shape.num_layers);
  s.step_reuse.clear();
  if (s.traits.reuse_below > 0 && shape.num_layers > 1) s.step_reuse.resize(num_branches);
  s.counter = {};
  s.runner.begin();
  s.fallbacks.clear();
  s.step = -1;
  s.branch_done.assign(num_branches, true);
  const std::string limitation = s.policy->limitation(s.all_live.q_grid(), shape.places);
  if (!limitation.empty()) s.fall_back(-1, limitation);
  if (!s.policy->is_dense() && std::ranges::count(s.kinds, StepKind::kDispatch) == 0) {
    s.fall_back(-1, format("none of %d steps is sparse: warmup is %d, interval %d", num_steps,
                           s.options.warmup, s.options.interval));
  }
}

void Engine::begin_step(int step, int branch) {
  State& s = *state_;
  const int num_branches = static_cast<int>(s.branch_done.size());
  FO_CHECK(branch >= 0 && branch < num_branches, "begin_step: branch is %d, must be 0 to %d",
           branch, num_branches - 1);
  if (step != s.step) {
    const bool all_done = std::ranges::all_of(s.branch_done, [](bool done) { return done; });
    FO_CHECK(all_done && step == s.step + 1 && step < static_cast<int>(s.kinds.size()),
             "begin_step: step %d cannot follow step %d: the %zu steps come in order and each runs "
             "all %d branches",
             step, s.step, s.kinds.size(), num_branches);
    s.branch_done.assign(num_branches, false);
    s.counter.count_step(s.kinds[step]);
  }
  FO_CHECK(!s.branch_done[branch], "begin_step: step %d already ran branch %d", step, branch);
  s.branch_done[branch] = true;
  s.step = step;
  s.branch = branch;
  s.kind = s.kinds[step];
  s.reuse_undecided = s.kind == StepKind::kDispatch && !s.step_reuse.empty();
  s.is_reused = false;
  s.count_layers(0, s.reuse_undecided ? 1 : s.shape.num_layers);
}

void Engine::attend(int layer, std::span<const AttentionStream> streams, const RopeTables& rope) {
  State& s = *state_;
  check_layer("attend", layer, s.shape.num_layers);
  check_streams(s.shape, streams, rope);
  if (layer > 0 && s.reuse_undecided) s.miss_reuse();
  LayerState& state = s.layer_state(layer);
  state.last_action = s.action(state);
  state.last_step = s.step;
  switch (state.last_action) {
    case LayerAction::kUpdate: s.run_update(layer, streams, rope); break;
    case LayerAction::kSparse: s.run_dispatch(layer, streams, rope); break;
    case LayerAction::kForecast:
    case LayerAction::kRefresh:
    case LayerAction::kDense:
      if (s.kind == StepKind::kDispatch) {
        s.fall_back(layer,
                    "the model does not forecast the layer's modules, as whole-layer "
                    "caching would have it; the layer runs dense");
      }
      s.run_dense(layer, streams, rope);
  }
  if (s.observer) s.observer(s.joint->observed(layer, s.branch, s.step, state.last_action));
}

LayerAction Engine::State::action(const LayerState& layer) const {
  const bool whole = layer.mode == LayerMode::kLayerCache;
  switch (kind) {
    case StepKind::kDense: return LayerAction::kDense;
    case StepKind::kUpdate: return whole ? LayerAction::kRefresh : LayerAction::kUpdate;
    case StepKind::kDispatch: break;
  }
  if (whole) return layer.has_modules() ? LayerAction::kForecast : LayerAction::kDense;
  return LayerAction::kSparse;
}

void Engine::State::run_dense(int layer, std::span<const AttentionStream> streams,
                              const RopeTables& rope) {
  for (const AttentionStream& stream : streams) {
    joint->project(stream, rope, joint->dense_plan(stream), joint->dense_plan(stream));
  }
  const bool skips = kind == StepKind::kUpdate && traits.skips_on_updates;
  joint->attend(skips ? update_plan(measure(layer)) : joint->dense_plan());
  for (const AttentionStream& stream : streams) {
    backend.gemm_o_update(joint->dense_plan(stream), joint->output(stream, keeps_modules(layer)), 0,
                          {}, {});
    if (keeps_modules(layer)) joint->add_out(stream);
  }
}

void Engine::State::run_update(int layer, std::span<const AttentionStream> streams,
                               const RopeTables& rope) {
  LayerState& state = layer_state(layer);
  for (const AttentionStream& stream : streams) {
    joint->project(stream, rope, joint->dense_plan(stream), joint->dense_plan(stream));
  }
  PolicyContext context = measure(layer);
  joint->attend(traits.skips_on_updates ? update_plan(context) : joint->dense_plan());
  if (traits.head_change) {
    context.head_change =
        state.head_change.measure(backend, joint->attended(), step - state.updated_at);
  }
  select_symbols(context, state);
  state.build_plans(backend, all_live, streams);
  const auto steps = static_cast<float>(step - state.updated_at);
  if (state.mode == LayerMode::kSparse) {
    state.bias.reserve(backend, options.order, shape, all_live.q_grid());
  }
  for (std::size_t i = 0; i < streams.size(); ++i) {
    backend.gemm_o_update(state.gemms[i], joint->output(streams[i], keeps_modules(layer)), steps,
                          state.bias.rows(streams[i].first_token, streams[i].num_tokens), {});
    if (keeps_modules(layer)) joint->add_out(streams[i]);
  }
  state.updated_at = step;
}

void Engine::State::run_dispatch(int layer, std::span<const AttentionStream> streams,
                                 const RopeTables& rope) {
  LayerState& state = layer_state(layer);
  check_same_streams(layer, state.streams, streams);
  for (std::size_t i = 0; i < streams.size(); ++i) {
    joint->project(streams[i], rope, state.gemms[i],
                   state.kv_gemms.empty() ? joint->dense_plan(streams[i]) : state.kv_gemms[i]);
  }
  joint->attend(state.attention);
  for (std::size_t i = 0; i < streams.size(); ++i) {
    OutputProjection output = joint->output(streams[i], /*to_out=*/false);
    output.bias = {};  // the bias cache contains it
    backend.gemm_o_dispatch(state.gemms[i], output, coefficients.at(step - state.updated_at),
                            state.bias.rows(streams[i].first_token, streams[i].num_tokens), {});
  }
}

// What the policy reads of a layer whose Q and K have just been projected.
PolicyContext Engine::State::measure(int layer) {
  PolicyContext context{.layer = layer,
                        .num_layers = shape.num_layers,
                        .branch = branch,
                        .step = step,
                        .num_steps = static_cast<int>(kinds.size()),
                        .ramp = ramp(),
                        .places = shape.places};
  runner.measure(*joint, context);
  return context;
}

// The attention of an update step of a policy that skips there too.
const AttentionPlan& Engine::State::update_plan(const PolicyContext& context) {
  SparseSymbols symbols = all_live;
  policy->select_update(context, symbols);
  backend.build_attention_plan(symbols, update_attention, {});
  counter.count_skipped_pairs(update_attention.stats.pairs - update_attention.stats.live_pairs);
  return update_attention;
}

// Leaves the symbols of this update in `state.symbols`, those of the last one in `state.previous`.
void Engine::State::select_symbols(PolicyContext& context, LayerState& state) {
  std::swap(state.symbols, state.previous);
  std::string limitation;
  runner.select(*joint, context, all_live, state.symbols, limitation);
  if (!limitation.empty()) fall_back(-1, "the host chooses the symbols: " + limitation);
  if (traits.caches_layers && state.symbols.stats().live_fraction() <= options.layer_cache) {
    state.mode = LayerMode::kLayerCache;
    state.bias = {};
  }
}

// What begin_step() knows the layers will do; modules of forecast layers are asked for by the model
// in ways that the engine does not see.
void Engine::State::count_layers(int first, int last) {
  const SymbolStats& dense = joint->dense_plan().stats;
  for (int layer = first; layer < last; ++layer) {
    const LayerState& state = layer_state(layer);
    switch (action(state)) {
      case LayerAction::kSparse: counter.count_dispatch_layer(state.attention.stats); break;
      case LayerAction::kForecast: counter.count_forecast_layer(dense.pairs); break;
      case LayerAction::kUpdate:
      case LayerAction::kRefresh:
      case LayerAction::kDense:
        if (kind == StepKind::kDispatch) {
          counter.count_dispatch_layer(dense);
        } else {
          counter.count_dense_layer(dense.pairs);
        }
    }
  }
}

void Engine::State::miss_reuse() {
  reuse_undecided = false;
  count_layers(1, shape.num_layers);
  fall_back(-1, "the model does not show its hidden states: no step is reused");
}

void Engine::State::fall_back(int layer, const std::string& reason) {
  const std::string where = layer < 0 ? "" : "layer " + std::to_string(layer) + ": ";
  if (options.strict) FO_FAIL(kUnsupported, "engine: %s%s", where.c_str(), reason.c_str());
  const auto same = [&](const Fallback& f) { return f.layer == layer && f.reason == reason; };
  if (std::ranges::none_of(fallbacks, same)) fallbacks.push_back({layer, reason});
}

void Engine::begin_layers(ConstTensorView hidden) {
  State& s = *state_;
  check_hidden("begin_layers", hidden, s.shape);
  if (!s.step_reuse.empty() && s.step >= s.options.warmup - 1) {
    s.step_reuse[s.branch].enter(s.backend, hidden);
  }
}

bool Engine::end_layer(int layer, TensorView hidden) {
  State& s = *state_;
  check_layer("end_layer", layer, s.shape.num_layers);
  check_hidden("end_layer", hidden, s.shape);
  if (s.step_reuse.empty() || s.step < s.options.warmup - 1) return false;
  StepReuse& reuse = s.step_reuse[s.branch];
  if (layer == s.shape.num_layers - 1) reuse.leave(s.backend, hidden);
  if (layer != 0) return false;
  const double change = reuse.change(s.backend, hidden);
  s.is_reused = s.kind == StepKind::kDispatch && change <= s.traits.reuse_below * s.ramp();
  if (s.is_reused) {
    reuse.add_rest(s.backend, hidden);
    s.counter.count_reused_pass();
    for (int i = 1; i < s.shape.num_layers; ++i) {
      s.counter.count_forecast_layer(s.joint->dense_plan().stats.pairs);
    }
  } else {
    reuse.keep(s.backend, hidden);
    if (s.reuse_undecided) s.count_layers(1, s.shape.num_layers);
  }
  s.reuse_undecided = false;
  return s.is_reused;
}

bool Engine::is_layer_forecast(int layer) const {
  check_layer("is_layer_forecast", layer, state_->shape.num_layers);
  return state_->action(state_->layer_state(layer)) == LayerAction::kForecast;
}

bool Engine::wants_modules(int layer) const {
  check_layer("wants_modules", layer, state_->shape.num_layers);
  return state_->keeps_modules(layer);
}

void Engine::record_module(int layer, int module, ConstTensorView value) {
  FO_CHECK(wants_modules(layer) && module >= 0,
           "record_module: module %d of layer %d is not wanted on this step", module, layer);
  std::vector<ModuleCache>& modules = state_->layer_state(layer).modules;
  if (static_cast<std::size_t>(module) >= modules.size()) modules.resize(module + 1);
  modules[module].record(state_->backend, value, state_->step, state_->options.order);
}

void Engine::forecast_module(int layer, int module, TensorView out) {
  check_layer("forecast_module", layer, state_->shape.num_layers);
  const std::vector<ModuleCache>& modules = state_->layer_state(layer).modules;
  FO_CHECK(is_layer_forecast(layer) && module >= 0 &&
               static_cast<std::size_t>(module) < modules.size() && modules[module].is_recorded(),
           "forecast_module: module %d of layer %d has no forecast on this step", module, layer);
  modules[module].forecast(state_->backend, state_->step, state_->coefficients, out);
}

LayerAction Engine::layer_action(int layer) const {
  check_layer("layer_action", layer, state_->shape.num_layers);
  const LayerState& state = state_->layer_state(layer);
  if (state_->is_reused && layer > 0) return LayerAction::kForecast;
  return state.last_step == state_->step ? state.last_action : state_->action(state);
}

StepKind Engine::step_kind(int step) const {
  const int num_steps = static_cast<int>(state_->kinds.size());
  FO_CHECK(step >= 0 && step < num_steps, "step_kind: step is %d, must be 0 to %d", step,
           num_steps - 1);
  return state_->kinds[step];
}

const SparseSymbols& Engine::symbols(int layer, int branch) const {
  const State& s = *state_;
  check_layer("symbols", layer, s.shape.num_layers);
  FO_CHECK(branch >= 0 && branch < static_cast<int>(s.branch_done.size()),
           "symbols: branch is %d, must be 0 to %zu", branch, s.branch_done.size() - 1);
  const LayerState& state = s.layers[s.layer_index(layer, branch)];
  return state.has_symbols() ? state.symbols : s.all_live;
}

EngineStats Engine::stats() const {
  const State& s = *state_;
  const auto is_cached = [&](int layer) {
    for (std::size_t b = 0; b < s.branch_done.size(); ++b) {
      const LayerState& state = s.layers[s.layer_index(layer, static_cast<int>(b))];
      if (state.mode == LayerMode::kLayerCache) return true;
    }
    return false;
  };
  int layers_cached = 0;
  for (int layer = 0; layer < s.shape.num_layers; ++layer) layers_cached += is_cached(layer);
  return s.counter.totals(layers_cached);
}

const std::vector<Fallback>& Engine::fallbacks() const { return state_->fallbacks; }
void Engine::set_attention_observer(AttentionObserver o) { state_->observer = std::move(o); }
Backend& Engine::backend() const { return state_->backend; }
const EngineOptions& Engine::options() const { return state_->options; }
const SparsityPolicy& Engine::policy() const { return *state_->policy; }
std::span<const TokenPlace> Engine::places() const { return state_->shape.places; }

}  // namespace flashomni
