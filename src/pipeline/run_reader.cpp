// run_reader.cpp -- a RunRecord from a file that may hold anything; format in docs/record.md.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include <nlohmann/json.hpp>

#include "flashomni/error.h"
#include "flashomni/png.h"
#include "flashomni/record.h"
#include "flashomni/safetensors.h"

#include "core/check.h"
#include "pipeline/run_format.h"

namespace flashomni {
namespace {

using Json = nlohmann::json;

// Far above any model; below them no product of sizes overflows.
constexpr int kMaxTokens = 1 << 22, kMaxCount = 1 << 16;

class RunReader {
 public:
  explicit RunReader(const std::filesystem::path& path) : path_(path), file_(path) {}
  RunRecord read();

 private:
  [[noreturn]] void malformed(const std::string& what) const {
    FO_FAIL(kIo, "run: %s: %s", path_.c_str(), what.c_str());
  }
  std::string metadata(const std::string& key) const;
  const Json& member(const Json& object, const std::string& where, const char* key) const;
  template <typename T>
  void read_value(const Json& object, const std::string& where, const char* key, T& value) const;
  void read_count(const Json& object, const std::string& where, const char* key, int minimum,
                  int& value) const;

  void read_request(const Json& json);
  void read_settings(const Json& json);
  void read_engine(const Json& json);
  void read_sequence(const Json& json);
  void read_result(const Json& json);
  void read_steps();
  void read_layers();
  void read_symbols();
  void read_token_order();
  void read_dense();
  Picture read_picture(const char* name) const;

  template <typename T>
  std::span<const T> values(const char* name, DType dtype, Layout layout) const;

  std::filesystem::path path_;
  SafetensorsFile file_;
  RunRecord run_;
};

std::string RunReader::metadata(const std::string& key) const {
  const auto found = file_.metadata().find(key);
  return found == file_.metadata().end() ? "" : found->second;
}

const Json& RunReader::member(const Json& object, const std::string& where, const char* key) const {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end()) malformed(where + "." + key + " is missing");
  return *found;
}

template <typename T>
void RunReader::read_value(const Json& object, const std::string& where, const char* key,
                           T& value) const {
  const Json& found = member(object, where, key);
  try {
    found.get_to(value);
  } catch (const Json::exception&) {
    malformed(where + "." + key + " is " + found.dump());
  }
}

void RunReader::read_count(const Json& object, const std::string& where, const char* key,
                           int minimum, int& value) const {
  double number = 0;
  read_value(object, where, key, number);
  if (!(number >= minimum && number <= kMaxCount) || number != std::floor(number)) {
    malformed(
        format("%s.%s is %g, must be %d to %d", where.c_str(), key, number, minimum, kMaxCount));
  }
  value = static_cast<int>(number);
}

void RunReader::read_request(const Json& json) {
  const std::string where = "request";
  GenerateRequest& request = run_.request;
  read_value(json, where, "prompt", request.prompt);
  read_count(json, where, "width", 1, request.width);
  read_count(json, where, "height", 1, request.height);
  read_count(json, where, "steps", 1, request.steps);
  read_value(json, where, "cfg", request.cfg);
  read_value(json, where, "guidance", request.guidance);
  read_value(json, where, "seed", request.seed);
}

void RunReader::read_settings(const Json& json) {
  const std::string where = "settings";
  RunSettings& settings = run_.settings;
  read_value(json, where, "model", settings.model);
  read_value(json, where, "backend", settings.backend);
  read_value(json, where, "device", settings.device);
  read_value(json, where, "dtype", settings.dtype);
  read_value(json, where, "preset", settings.preset);
  read_value(json, where, "policy", settings.policy);
  read_value(json, where, "policy_options", settings.policy_options);
  read_engine(member(json, where, "engine"));
}

void RunReader::read_engine(const Json& json) {
  const std::string where = "settings.engine";
  EngineOptions& engine = run_.settings.engine;
  read_count(json, where, "warmup", 1, engine.warmup);
  read_count(json, where, "interval", 1, engine.interval);
  read_count(json, where, "order", 0, engine.order);
  read_value(json, where, "layer_cache", engine.layer_cache);
  read_value(json, where, "ramp", engine.ramp);
  read_count(json, where, "block_q", 1, engine.block_q);
  read_count(json, where, "block_kv", 1, engine.block_kv);
  read_value(json, where, "strict", engine.strict);
  std::string forecast;
  read_value(json, where, "forecast", forecast);
  if (forecast != "taylor" && forecast != "newton") {
    malformed("settings.engine.forecast is \"" + forecast + "\", must be taylor or newton");
  }
  engine.forecast = forecast == "newton" ? ForecastKind::kNewton : ForecastKind::kTaylor;
  std::string order;
  read_value(json, where, "token_order", order);
  if (order != "raster" && order != "tile") {
    malformed("settings.engine.token_order is \"" + order + "\", must be raster or tile");
  }
  engine.token_order = order == "tile" ? TokenOrder::kTile : TokenOrder::kRaster;
}

void RunReader::read_sequence(const Json& json) {
  const std::string where = "sequence";
  read_count(json, where, "heads", 1, run_.num_heads);
  read_count(json, where, "layers", 1, run_.num_layers);
  read_count(json, where, "double_layers", 0, run_.num_double_layers);
  read_count(json, where, "branches", 1, run_.num_branches);
  read_count(json, where, "grid_width", 1, run_.grid_width);
  read_count(json, where, "grid_height", 1, run_.grid_height);
  std::int64_t image_tokens = 0, tokens = 0;
  for (const Json& segment : member(json, where, "segments")) {
    std::string kind;
    int count = 0;
    read_value(segment, "sequence.segments", "kind", kind);
    read_value(segment, "sequence.segments", "tokens", count);
    if (kind != "text" && kind != "image") malformed("a segment is of the kind \"" + kind + "\"");
    const bool image = kind == "image";
    if (count < 0 || count > kMaxTokens) malformed(format("a segment has %d tokens", count));
    run_.segments.push_back({image ? SegmentKind::kImage : SegmentKind::kText, count});
    tokens += count;
    if (image) image_tokens += count;
  }
  const std::int64_t grid = std::int64_t{run_.grid_width} * run_.grid_height;
  if (image_tokens != grid || tokens > kMaxTokens) {
    malformed(format("the segments have %lld image tokens of %lld, the grid of %d x %d has %lld",
                     static_cast<long long>(image_tokens), static_cast<long long>(tokens),
                     run_.grid_width, run_.grid_height, static_cast<long long>(grid)));
  }
}

void RunReader::read_result(const Json& json) {
  const std::string where = "result";
  EngineStats& stats = run_.sparsity;
  read_count(json, where, "dense_steps", 0, stats.dense_steps);
  read_count(json, where, "update_steps", 0, stats.update_steps);
  read_count(json, where, "dispatch_steps", 0, stats.dispatch_steps);
  read_count(json, where, "layers_cached", 0, stats.layers_cached);
  read_count(json, where, "reused_passes", 0, stats.reused_passes);
  read_value(json, where, "cached_fraction", stats.cached_fraction);
  read_value(json, where, "skipped_fraction", stats.skipped_fraction);
  read_value(json, where, "attention_sparsity", stats.attention_sparsity);
  read_value(json, where, "seconds_total", run_.seconds_total);
  read_value(json, where, "seconds_denoise", run_.seconds_denoise);
  read_value(json, where, "macs_total", run_.macs_total);
  read_value(json, where, "macs_done", run_.macs_done);
  read_value(json, where, "warnings", run_.warnings);
  for (const Json& item : member(json, where, "op_times")) {
    OpTime& op = run_.op_times.emplace_back();
    read_value(item, "result.op_times", "op", op.op);
    read_value(item, "result.op_times", "seconds", op.seconds);
    read_value(item, "result.op_times", "macs", op.macs);
    read_value(item, "result.op_times", "calls", op.calls);
  }
  for (const Json& item : member(json, where, "fallbacks")) {
    Fallback& fallback = run_.fallbacks.emplace_back();
    read_value(item, "result.fallbacks", "layer", fallback.layer);
    read_value(item, "result.fallbacks", "reason", fallback.reason);
  }
}

template <typename T>
std::span<const T> RunReader::values(const char* name, DType dtype, Layout layout) const {
  if (!file_.contains(name)) malformed(format("the tensor %s is missing", name));
  const ConstTensorView tensor = file_.tensor(name);
  const bool fits = tensor.dtype == dtype && tensor.layout.rank == layout.rank &&
                    tensor.layout.sizes == layout.sizes;
  if (!fits) {
    malformed(format("the tensor %s is %s %s, must be %s %s", name, dtype_name(tensor.dtype).data(),
                     tensor.layout.to_string().c_str(), dtype_name(dtype).data(),
                     layout.to_string().c_str()));
  }
  return {tensor.as<T>(), static_cast<std::size_t>(layout.num_elements())};
}

void RunReader::read_steps() {
  const int num_steps = run_.request.steps;
  const Layout layout{num_steps};
  const auto kinds = values<std::uint8_t>(run_format::kStepKind, DType::kU8, layout);
  const auto seconds = values<float>(run_format::kStepSeconds, DType::kF32, layout);
  for (int step = 0; step < num_steps; ++step) {
    if (kinds[step] > static_cast<int>(StepKind::kDispatch)) {
      malformed(format("step %d is of the kind %d, must be 0 to 2", step, kinds[step]));
    }
    run_.steps.push_back({step, num_steps, static_cast<StepKind>(kinds[step]), seconds[step]});
  }
}

void RunReader::read_layers() {
  const Layout layout{run_.request.steps, run_.num_branches, run_.num_layers};
  const auto actions = values<std::uint8_t>(run_format::kLayerAction, DType::kU8, layout);
  const auto symbols = values<std::int32_t>(run_format::kLayerSymbols, DType::kI32, layout);
  const auto seconds = values<float>(run_format::kLayerSeconds, DType::kF32, layout);
  const auto macs = values<float>(run_format::kLayerMacs, DType::kF32, layout);
  const auto count = static_cast<int>(run_.symbols.size());
  for (std::size_t i = 0; i < actions.size(); ++i) {
    if (actions[i] > static_cast<int>(LayerAction::kRefresh)) {
      malformed(format("layer.action[%zu] is %d, must be 0 to 4", i, actions[i]));
    }
    const auto action = static_cast<LayerAction>(actions[i]);
    const bool needed = action == LayerAction::kSparse || action == LayerAction::kUpdate;
    if (symbols[i] < (needed ? 0 : -1) || symbols[i] >= count) {
      malformed(format("layer.symbols[%zu] is %d, the file has %d symbols", i, symbols[i], count));
    }
    run_.layers.push_back({action, symbols[i], seconds[i], macs[i]});
  }
}

void RunReader::read_symbols() {
  if (!file_.contains(run_format::kSymbolsCache)) return;
  const EngineOptions& engine = run_.settings.engine;
  BlockGrid q_grid(engine.block_q, 1, run_.segments), kv_grid(engine.block_kv, 1, run_.segments);
  const index_t q_blocks = q_grid.num_blocks();
  const auto words = [](index_t bits) { return (bits + 31) / 32; };
  const ConstTensorView stored = file_.tensor(run_format::kSymbolsCache);
  const index_t count = stored.rank() > 0 ? stored.size(0) : 0;
  const auto cache = values<std::uint32_t>(run_format::kSymbolsCache, DType::kI32,
                                           {count, q_blocks, words(run_.num_heads)});
  const auto skip =
      values<std::uint32_t>(run_format::kSymbolsSkip, DType::kI32,
                            {count, run_.num_heads, q_blocks, words(kv_grid.num_blocks())});
  if (count == 0) return;
  // Made only now that the file is known to hold as much: sizes alone could ask for any memory.
  const SparseSymbols all_live(std::move(q_grid), std::move(kv_grid), run_.num_heads);
  const std::size_t cache_words = all_live.cache_words().size();
  const std::size_t skip_words = all_live.skip_words().size();
  for (index_t i = 0; i < count; ++i) {
    SparseSymbols& symbols = run_.symbols.emplace_back(all_live);
    try {
      symbols.import_words(cache.subspan(i * cache_words, cache_words),
                           skip.subspan(i * skip_words, skip_words));
    } catch (const Error& error) {
      malformed(format("symbols %lld: %s", static_cast<long long>(i), error.what()));
    }
  }
}

void RunReader::read_token_order() {
  const int image_tokens = run_.grid_width * run_.grid_height;
  const auto order = values<std::int32_t>(run_format::kTokenOrder, DType::kI32, {image_tokens});
  std::vector<bool> seen(order.size());
  for (const std::int32_t token : order) {
    if (token < 0 || token >= image_tokens || seen[token]) {
      malformed(format("%s holds %d twice or out of range", run_format::kTokenOrder, token));
    }
    seen[token] = true;
  }
  run_.token_order.assign(order.begin(), order.end());
}

Picture RunReader::read_picture(const char* name) const {
  if (!file_.contains(name)) malformed(format("the tensor %s is missing", name));
  const Layout stored = file_.tensor(name).layout;
  const auto png = values<std::uint8_t>(name, DType::kU8, {stored.num_elements()});
  Picture picture;
  try {
    picture = decode_png(png);
  } catch (const Error& error) {
    malformed(format("%s: %s", name, error.what()));
  }
  if (picture.width != run_.request.width || picture.height != run_.request.height) {
    malformed(format("%s is %d x %d pixels, the request %d x %d", name, picture.width,
                     picture.height, run_.request.width, run_.request.height));
  }
  return picture;
}

void RunReader::read_dense() {
  if (!file_.contains(run_format::kDensePicture)) return;
  run_.dense_picture = read_picture(run_format::kDensePicture);
  const auto seconds =
      values<float>(run_format::kDenseStepSeconds, DType::kF32, {run_.request.steps});
  run_.dense_step_seconds.assign(seconds.begin(), seconds.end());
}

RunRecord RunReader::read() {
  if (metadata("format") != run_format::kFormat) {
    malformed("this is no recorded run: its metadata do not name the format flashomni-run");
  }
  if (metadata("version") != run_format::kVersion) {
    malformed(format("the format's version is \"%s\", this program reads %s",
                     metadata("version").c_str(), run_format::kVersion));
  }
  const Json json = Json::parse(metadata("run"), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) malformed("the metadata's run is not a JSON object");
  read_request(member(json, "run", "request"));
  read_settings(member(json, "run", "settings"));
  read_sequence(member(json, "run", "sequence"));
  read_result(member(json, "run", "result"));
  read_steps();
  read_symbols();
  read_layers();
  read_token_order();
  run_.picture = read_picture(run_format::kPicture);
  read_dense();
  return std::move(run_);
}

}  // namespace

RunRecord read_run(const std::filesystem::path& path) { return RunReader(path).read(); }

}  // namespace flashomni
