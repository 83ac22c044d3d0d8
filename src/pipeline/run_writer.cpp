// run_writer.cpp -- a RunRecord as a safetensors file; format in docs/record.md.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "flashomni/png.h"
#include "flashomni/record.h"
#include "flashomni/safetensors.h"

#include "core/check.h"
#include "pipeline/run_format.h"

namespace flashomni {
namespace {

using Json = nlohmann::ordered_json;

Json settings_json(const RunSettings& settings) {
  const EngineOptions& engine = settings.engine;
  return {{"model", settings.model},
          {"backend", settings.backend},
          {"device", settings.device},
          {"dtype", settings.dtype},
          {"preset", settings.preset},
          {"policy", settings.policy},
          {"policy_options", settings.policy_options},
          {"engine",
           {{"warmup", engine.warmup},
            {"interval", engine.interval},
            {"order", engine.order},
            {"layer_cache", engine.layer_cache},
            {"ramp", engine.ramp},
            {"forecast", engine.forecast == ForecastKind::kNewton ? "newton" : "taylor"},
            {"block_q", engine.block_q},
            {"block_kv", engine.block_kv},
            {"token_order", token_order_name(engine.token_order)},
            {"strict", engine.strict}}}};
}

Json sequence_json(const RunRecord& run) {
  Json segments = Json::array();
  for (const Segment& segment : run.segments) {
    const char* kind = segment.kind == SegmentKind::kText ? "text" : "image";
    segments.push_back({{"kind", kind}, {"tokens", segment.num_tokens}});
  }
  return {{"segments", segments},          {"heads", run.num_heads},
          {"layers", run.num_layers},      {"double_layers", run.num_double_layers},
          {"branches", run.num_branches},  {"grid_width", run.grid_width},
          {"grid_height", run.grid_height}};
}

Json result_json(const RunRecord& run) {
  Json op_times = Json::array(), fallbacks = Json::array();
  for (const OpTime& op : run.op_times) {
    op_times.push_back(
        {{"op", op.op}, {"seconds", op.seconds}, {"macs", op.macs}, {"calls", op.calls}});
  }
  for (const Fallback& fallback : run.fallbacks) {
    fallbacks.push_back({{"layer", fallback.layer}, {"reason", fallback.reason}});
  }
  const EngineStats& stats = run.sparsity;
  return {{"dense_steps", stats.dense_steps},
          {"update_steps", stats.update_steps},
          {"dispatch_steps", stats.dispatch_steps},
          {"cached_fraction", stats.cached_fraction},
          {"skipped_fraction", stats.skipped_fraction},
          {"attention_sparsity", stats.attention_sparsity},
          {"layers_cached", stats.layers_cached},
          {"reused_passes", stats.reused_passes},
          {"seconds_total", run.seconds_total},
          {"seconds_denoise", run.seconds_denoise},
          {"macs_total", run.macs_total},
          {"macs_done", run.macs_done},
          {"op_times", op_times},
          {"fallbacks", fallbacks},
          {"warnings", run.warnings}};
}

std::string run_json(const RunRecord& run) {
  const GenerateRequest& request = run.request;
  const Json json = {{"request",
                      {{"prompt", request.prompt},
                       {"width", request.width},
                       {"height", request.height},
                       {"steps", request.steps},
                       {"cfg", request.cfg},
                       {"guidance", request.guidance},
                       {"seed", request.seed}}},
                     {"settings", settings_json(run.settings)},
                     {"sequence", sequence_json(run)},
                     {"result", result_json(run)}};
  // A prompt may be any bytes; JSON holds UTF-8.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The tensors of a run, kept until they are written.
class RunTensors {
 public:
  explicit RunTensors(const RunRecord& run) {
    add_steps(run);
    add_layers(run);
    add_symbols(run);
    add_values(run_format::kTokenOrder, DType::kI32, {static_cast<index_t>(run.token_order.size())},
               run.token_order);
    add_picture(run_format::kPicture, run.picture);
    if (run.dense_picture.width == 0) return;
    add_picture(run_format::kDensePicture, run.dense_picture);
    add_values(run_format::kDenseStepSeconds, DType::kF32,
               {static_cast<index_t>(run.dense_step_seconds.size())}, run.dense_step_seconds);
  }
  const std::vector<NamedTensor>& named() const { return named_; }

 private:
  template <typename Values>
  void add_values(const char* name, DType dtype, Layout layout, const Values& values) {
    Tensor& tensor = storage_.emplace_back(Tensor::host(dtype, layout));
    using Value = typename Values::value_type;
    FO_ASSERT(tensor.bytes() == static_cast<index_t>(values.size() * sizeof(Value)));
    std::copy(values.begin(), values.end(), tensor.as<Value>());
    named_.push_back({name, tensor});
  }

  void add_steps(const RunRecord& run) {
    std::vector<std::uint8_t> kinds;
    std::vector<float> seconds;
    for (const StepProgress& step : run.steps) {
      kinds.push_back(static_cast<std::uint8_t>(step.kind));
      seconds.push_back(static_cast<float>(step.seconds));
    }
    const Layout layout{static_cast<index_t>(run.steps.size())};
    add_values(run_format::kStepKind, DType::kU8, layout, kinds);
    add_values(run_format::kStepSeconds, DType::kF32, layout, seconds);
  }

  void add_layers(const RunRecord& run) {
    std::vector<std::uint8_t> actions;
    std::vector<std::int32_t> symbols;
    std::vector<float> seconds, macs, density;
    for (const LayerRun& layer : run.layers) {
      actions.push_back(static_cast<std::uint8_t>(layer.action));
      symbols.push_back(layer.symbols);
      seconds.push_back(layer.seconds);
      macs.push_back(layer.macs);
      density.push_back(static_cast<float>(attention_density(run, layer)));
    }
    const Layout layout{static_cast<index_t>(run.steps.size()), run.num_branches, run.num_layers};
    add_values(run_format::kLayerAction, DType::kU8, layout, actions);
    add_values(run_format::kLayerSymbols, DType::kI32, layout, symbols);
    add_values(run_format::kLayerSeconds, DType::kF32, layout, seconds);
    add_values(run_format::kLayerMacs, DType::kF32, layout, macs);
    add_values(run_format::kLayerDensity, DType::kF32, layout, density);
  }

  void add_symbols(const RunRecord& run) {
    if (run.symbols.empty()) return;
    std::vector<std::int32_t> cache, skip;  // the words' bits
    for (const SparseSymbols& symbols : run.symbols) {
      cache.insert(cache.end(), symbols.cache_words().begin(), symbols.cache_words().end());
      skip.insert(skip.end(), symbols.skip_words().begin(), symbols.skip_words().end());
    }
    const auto count = static_cast<index_t>(run.symbols.size());
    const SparseSymbols& first = run.symbols.front();
    const index_t q_blocks = first.q_grid().num_blocks();
    add_values(run_format::kSymbolsCache, DType::kI32, {count, q_blocks, first.head_words()},
               cache);
    add_values(run_format::kSymbolsSkip, DType::kI32,
               {count, first.num_heads(), q_blocks, first.kv_words()}, skip);
  }

  void add_picture(const char* name, const Picture& picture) {
    const std::string png = encode_png(picture);
    add_values(name, DType::kU8, {static_cast<index_t>(png.size())}, png);
  }

  std::vector<Tensor> storage_;
  std::vector<NamedTensor> named_;
};

}  // namespace

double attention_density(const RunRecord& run, const LayerRun& layer) {
  switch (layer.action) {
    case LayerAction::kForecast: return 0;
    case LayerAction::kSparse:
      return run.symbols[static_cast<std::size_t>(layer.symbols)].stats().density();
    case LayerAction::kDense:
    case LayerAction::kUpdate:
    case LayerAction::kRefresh: break;
  }
  return 1;
}

void write_run(const std::filesystem::path& path, const RunRecord& run) {
  const std::size_t layers = run.steps.size() * run.num_branches * run.num_layers;
  FO_CHECK(!run.steps.empty() && run.layers.size() == layers && !run.picture.rgb.empty(),
           "write_run: the record has %zu steps and %zu runs of layers, a whole generation has %zu",
           run.steps.size(), run.layers.size(), layers);
  write_safetensors(
      path, RunTensors(run).named(),
      {{"format", run_format::kFormat}, {"version", run_format::kVersion}, {"run", run_json(run)}});
}

}  // namespace flashomni
