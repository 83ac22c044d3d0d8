// engine.h -- update and dispatch: when symbols are refreshed, and attention layers run by them.
//
// One Engine serves one generation at a time: begin(), then for every step and branch begin_step()
// followed by the layers in order. It knows nothing of a particular model.
// Source: arXiv:2509.25401, update-dispatch engine; state machine in docs/architecture.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/policy.h"

namespace flashomni {

enum class StepKind : std::uint8_t {
  kDense,     // everything computed, nothing remembered
  kUpdate,    // everything computed; symbols and caches refreshed
  kDispatch,  // only what the symbols say
};
std::string_view step_kind_name(StepKind kind);  // "dense", "update", "dispatch"

// What a step does with one layer of one branch.
enum class LayerAction : std::uint8_t {
  kDense,     // everything computed, nothing remembered
  kUpdate,    // everything computed; the layer's symbols and bias cache refreshed
  kSparse,    // by the symbols
  kForecast,  // nothing computed: the layer's modules are extrapolated (whole-layer caching)
  kRefresh,   // everything computed; the modules of a layer in whole-layer caching refreshed
};
std::string_view layer_action_name(LayerAction action);  // "dense", "update", ..., "refresh"

enum class ForecastKind { kTaylor, kNewton };

struct EngineOptions {
  int warmup = 4;          // W: the first W steps are full; symbols are first made at step W - 1
  int interval = 5;        // N: one update, then N - 1 dispatch steps
  int order = 1;           // D: order of the forecast of cached features, 0..2
  double layer_cache = 0;  // S_q: a layer whose live fraction is at or below it is cached whole
  double ramp = 0;         // p: thresholds are multiplied by (step / num_steps)^p
  ForecastKind forecast = ForecastKind::kTaylor;
  int block_q = 64, block_kv = 64;
  TokenOrder token_order = TokenOrder::kRaster;  // of the image; a tile holds block_q tokens
  bool strict = false;  // fallbacks throw kUnsupported instead of being noted
};

// The kind of every step of a generation: the classifier of the published code (W, N; the last
// step is always full). Throws kInvalidArgument for warmup < 1, interval < 1 or num_steps < 1.
std::vector<StepKind> classify_steps(int num_steps, int warmup, int interval);

// Coefficients of terms 0..order, `k` steps after the update; `interval` = steps between updates.
//   Taylor  1, k, k^2 / 2           Newton  1, k, k (k + interval) / 2
std::vector<float> forecast_coefficients(ForecastKind kind, int order, int k, int interval);

// Weights of one token stream of a joint attention layer; pointers live as long as the model.
// q, k and v are packed with column_group = head_dim.
struct StreamWeights {
  const PackedWeight *q = nullptr, *k = nullptr, *v = nullptr, *out = nullptr;
  ConstTensorView q_bias, k_bias, v_bias, out_bias;  // f32 or {}
  ConstTensorView q_norm, k_norm;                    // [head_dim] f32 or {}
};

// One stream's part in a joint attention layer. Batch is 1: a branch is one sample.
struct AttentionStream {
  int first_token = 0, num_tokens = 0;  // its place in the joint sequence, whole segments
  const StreamWeights* weights = nullptr;
  ConstTensorView x;    // [num_tokens, hidden_dim], normed and modulated, the weights' dtype
  ConstTensorView mlp;  // [num_tokens, mlp_dim] or {}: see OutputProjection::mlp
  TensorView out;       // [num_tokens, hidden_dim], the weights' dtype
  // If given, [num_tokens, hidden_dim] f32: attend() adds gate ([hidden_dim] f32, {} = 1) times the
  // projection to it, and writes `out` only where wants_modules() asks for it afterwards.
  TensorView residual = {};
  ConstTensorView gate = {};
};

// Rotary tables of the joint sequence, [seq_len, head_dim / 2] f32; {} = no rotary embedding.
struct RopeTables {
  ConstTensorView cos, sin;
};

struct SequenceShape {
  std::vector<Segment> segments;  // of the joint sequence
  int num_heads = 0, head_dim = 0;
  int hidden_dim = 0;  // out_features of the output projections
  DType dtype = DType::kF32;
  int num_layers = 0;
  // Of the image tokens, in sequence order; empty: unknown, which some policies cannot do with.
  std::vector<TokenPlace> places = {};
};

// Something that ran otherwise than asked for, and why. Layer -1: not about one layer.
struct Fallback {
  int layer = -1;
  std::string reason;
};

// What the symbols left undone, over one generation (all branches).
struct EngineStats {
  int dense_steps = 0, update_steps = 0, dispatch_steps = 0;
  double cached_fraction = 0;     // mean over layers and dispatch steps
  double skipped_fraction = 0;    // the same
  double attention_sparsity = 0;  // token pairs not computed, over all steps; a cached layer is 1
  int layers_cached = 0;          // layers in whole-layer caching at the end, of any branch
  int reused_passes = 0;          // forward passes of dispatch steps that ended after layer 0
};

// What the attention of one layer read and wrote, after norm and rotary embedding and before the
// output projection: [1, seq_len, num_heads, head_dim] each, in the model's dtype and the backend's
// memory. On a sparse step (kSparse) rows of cached query blocks hold what was there before.
struct AttendedLayer {
  int layer = 0, branch = 0, step = 0;
  LayerAction action = LayerAction::kDense;
  ConstTensorView q, k, v, o;
};

// Told of each layer that attends, in order, once its work has been enqueued; a layer that is
// forecast does not attend. The views hold one layer at a time: what is to be kept must be copied
// (Backend::copy, then Backend::synchronize on a GPU) before it returns. It must not write to them.
using AttentionObserver = std::function<void(const AttendedLayer&)>;

class Engine {
 public:
  // `backend` outlives the engine.
  Engine(Backend& backend, const EngineOptions& options, std::unique_ptr<SparsityPolicy> policy);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Forgets the previous generation. Dispatch steps allocate nothing: their buffers are made here
  // and by the update before them.
  void begin(const SequenceShape& shape, int num_steps, int num_branches);
  StepKind step_kind(int step) const;
  // For analysis, of all generations from here on; {}: nobody watches. docs/observing.md.
  void set_attention_observer(AttentionObserver observer);
  // Steps come in order; each step runs every branch once, in any order.
  void begin_step(int step, int branch);

  // Joint attention over `streams`, which cover the sequence in token order: projections of x,
  // norm, rotary embedding, attention, output projection. On update steps also asks the policy for
  // this layer's symbols and refreshes its caches; on dispatch steps runs by them. Throws
  // kInvalidArgument if the streams do not fit the shape given to begin().
  void attend(int layer, std::span<const AttentionStream> streams, const RopeTables& rope);

  // Whole-step reuse (first-block caching, PolicyTraits::reuse_below). A model shows its hidden
  // states [seq_len, hidden_dim] f32 before layer 0 and after every layer. After layer 0
  // end_layer() may return true: it has added what the other layers added when a step last ran to
  // its end, and the model leaves them out.
  void begin_layers(ConstTensorView hidden);
  bool end_layer(int layer, TensorView hidden);

  // Whole-layer caching (arXiv:2509.25401 via TaylorSeer). A model asks at the top of a layer:
  // true: skip the layer and add forecast_module() of each of its modules instead.
  bool is_layer_forecast(int layer) const;
  // After attend(): true on update steps of a layer in whole-layer caching; the model then hands
  // over each module's output (before its gate) through record_module().
  bool wants_modules(int layer) const;
  void record_module(int layer, int module, ConstTensorView value);
  void forecast_module(int layer, int module, TensorView out);

  // What the step that runs now does with a layer of its branch, or did if the layer has run.
  LayerAction layer_action(int layer) const;
  const SparseSymbols& symbols(int layer, int branch) const;  // of the last update
  const std::vector<Fallback>& fallbacks() const;
  EngineStats stats() const;
  Backend& backend() const;
  const EngineOptions& options() const;
  const SparsityPolicy& policy() const;
  std::span<const TokenPlace> places() const;  // as given to begin()

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flashomni
