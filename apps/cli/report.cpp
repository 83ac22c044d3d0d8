#include "report.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "flashomni/image_metrics.h"
#include "flashomni/png.h"
#include "inspect_page.h"

namespace flashomni::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string base64(std::span<const std::uint8_t> bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    for (std::size_t j = i; j < i + 3; ++j) three = three << 8 | (j < bytes.size() ? bytes[j] : 0);
    for (int shift = 18; shift >= 0; shift -= 6) text.push_back(kDigits[three >> shift & 63]);
  }
  for (std::size_t i = 0; i < (3 - bytes.size() % 3) % 3; ++i) text[text.size() - 1 - i] = '=';
  return text;
}

// Of the memory of the values; the page's typed arrays read it as it is, little-endian.
template <typename T>
std::string base64_of(const std::vector<T>& values) {
  return base64({reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * sizeof(T)});
}

std::string base64_png(const Picture& picture) {
  const std::string png = encode_png(picture);
  return base64({reinterpret_cast<const std::uint8_t*>(png.data()), png.size()});
}

void add_steps(const RunRecord& run, Json& json) {
  std::vector<int> kinds;
  std::vector<double> seconds;
  for (const StepProgress& step : run.steps) {
    kinds.push_back(static_cast<int>(step.kind));
    seconds.push_back(step.seconds);
  }
  json["kinds"] = kinds;
  json["seconds"] = seconds;
}

void add_layers(const RunRecord& run, Json& json) {
  std::vector<std::uint8_t> actions;
  std::vector<std::int32_t> symbols;
  std::vector<float> seconds, macs;
  for (const LayerRun& layer : run.layers) {
    actions.push_back(static_cast<std::uint8_t>(layer.action));
    symbols.push_back(layer.symbols);
    seconds.push_back(layer.seconds);
    macs.push_back(layer.macs);
  }
  json["action"] = base64_of(actions);
  json["symbols"] = base64_of(symbols);
  json["layerSeconds"] = base64_of(seconds);
  json["layerMacs"] = base64_of(macs);
  std::vector<std::uint32_t> cache, skip;
  for (const SparseSymbols& one : run.symbols) {
    cache.insert(cache.end(), one.cache_words().begin(), one.cache_words().end());
    skip.insert(skip.end(), one.skip_words().begin(), one.skip_words().end());
  }
  json["cacheWords"] = base64_of(cache);
  json["skipWords"] = base64_of(skip);
}

Json settings_of(const RunSettings& settings) {
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
            {"layer-cache", engine.layer_cache},
            {"ramp", engine.ramp},
            {"block", engine.block_q}}}};
}

Json run_json(const RunRecord& run) {
  Json segments = Json::array(), fallbacks = Json::array();
  for (const Segment& segment : run.segments) {
    const bool is_text = segment.kind == SegmentKind::kText;
    segments.push_back({is_text ? "text" : "image", segment.num_tokens});
  }
  for (const Fallback& fallback : run.fallbacks) {
    fallbacks.push_back({{"layer", fallback.layer}, {"reason", fallback.reason}});
  }
  Json json = {{"prompt", run.request.prompt},
               {"width", run.request.width},
               {"height", run.request.height},
               {"cfg", run.request.cfg},
               {"seed", std::to_string(run.request.seed)},  // exact beyond 2^53
               {"settings", settings_of(run.settings)},
               {"heads", run.num_heads},
               {"layers", run.num_layers},
               {"doubleLayers", run.num_double_layers},
               {"branches", run.num_branches},
               {"gridWidth", run.grid_width},
               {"gridHeight", run.grid_height},
               {"blockQ", run.settings.engine.block_q},
               {"blockKv", run.settings.engine.block_kv},
               {"segments", segments},
               {"order", base64_of(run.token_order)},
               {"attentionSparsity", run.sparsity.attention_sparsity},
               {"macsDone", run.macs_done},
               {"macsTotal", run.macs_total},
               {"secondsDenoise", run.seconds_denoise},
               {"fallbacks", fallbacks},
               {"picture", base64_png(run.picture)}};
  add_steps(run, json);
  add_layers(run, json);
  if (run.dense_picture.width > 0) {
    json["dense"] = {{"picture", base64_png(run.dense_picture)},
                     {"seconds", run.dense_step_seconds},
                     {"psnr", psnr_db(run.picture, run.dense_picture)}};
  }
  return json;
}

// The data stand in a <script>, which "</script>" in a prompt must not end.
std::string script_text(const Json& json) {
  std::string text = json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  for (std::size_t at = 0; (at = text.find("</", at)) != std::string::npos; at += 3) {
    text.insert(at + 1, 1, '\\');
  }
  return text;
}

}  // namespace

std::string make_report(const RunRecord& run, const RunRecord* against) {
  Json runs = Json::array({run_json(run)});
  Json differences = Json::array();
  if (against) {
    runs.push_back(run_json(*against));
    differences = run_differences(run, *against);
  }
  const Json data = {{"runs", runs}, {"differences", differences}};
  constexpr std::string_view kPlace = "/*DATA*/";
  std::string page(kInspectPage);
  return page.replace(page.find(kPlace), kPlace.size(), script_text(data));
}

}  // namespace flashomni::cli
