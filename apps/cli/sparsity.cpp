#include "sparsity.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "commands.h"
#include "flashomni/error.h"
#include "machine.h"

namespace flashomni::cli {
namespace {

using Values = std::map<std::string, std::string>;

struct EngineOption {
  const char *name, *help;
};
constexpr EngineOption kEngineOptions[] = {
    {"warmup", "W: the first W steps are dense"},
    {"interval", "N: one update, then N - 1 dispatch steps"},
    {"order", "D: order of the forecast of cached features, 0 to 2"},
    {"layer-cache", "S_q: a layer whose live fraction is at or below it is cached whole"},
    {"ramp", "p: thresholds are multiplied by (step / steps)^p"},
    {"forecast", "taylor or newton"},
    {"block", "tokens a symbol covers"},
    {"token-order", "of the image: raster, or tile (a block is a tile of the picture)"},
};

bool is_engine_option(const std::string& name) {
  return std::ranges::any_of(kEngineOptions,
                             [&](const EngineOption& option) { return name == option.name; });
}

bool has_option(const PolicyInfo& policy, const std::string& name) {
  return std::ranges::find(policy.options, name) != policy.options.end();
}

bool is_policy_option(const std::string& name) {
  const std::vector<PolicyInfo> policies = list_policies();
  return std::ranges::any_of(policies,
                             [&](const PolicyInfo& policy) { return has_option(policy, name); });
}

PolicyInfo find_named_policy(const std::string& name) {
  try {
    return find_policy(name);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

std::string preset_names() {
  std::string names = "off";
  const std::filesystem::path folder = find_shipped("presets");
  if (folder.empty()) return names;
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") found.push_back(entry.path().stem());
  }
  std::ranges::sort(found);
  for (const std::string& name : found) names += ", " + name;
  return names;
}

// A file if it looks like one, else presets/NAME.json.
std::filesystem::path find_preset(const std::string& name) {
  const bool is_file = name.ends_with(".json");
  const std::filesystem::path path =
      is_file ? std::filesystem::path(name) : find_shipped("presets/" + name + ".json");
  if (path.empty() || !std::filesystem::exists(path)) {
    throw UsageError("--preset: there is no preset '" + name + "'; there are " + preset_names() +
                     ", or give a FILE.json");
  }
  return path;
}

std::string value_text(const nlohmann::json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Values read_preset(const std::string& name) {
  const std::filesystem::path path = find_preset(name);
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw UsageError("--preset: " + path.string() + " is not a JSON object");
  Values values;
  for (const auto& [option, value] : json.items()) {
    if (option == "description" || option == "evidence") continue;
    if (option != "sparsity-policy" && !is_engine_option(option) && !is_policy_option(option)) {
      throw UsageError("--preset: " + path.string() + " has an unknown option '" + option + "'");
    }
    values[option] = value_text(value);
  }
  return values;
}

template <typename T>
void read_number(const Values& values, const char* name, T& number) {
  const auto found = values.find(name);
  if (found == values.end()) return;
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw UsageError(std::string("--") + name + ": '" + text + "' is not " +
                     (std::is_integral_v<T> ? "an integer" : "a number"));
  }
}

EngineOptions read_engine_options(const Values& values) {
  EngineOptions engine;
  read_number(values, "warmup", engine.warmup);
  read_number(values, "interval", engine.interval);
  read_number(values, "order", engine.order);
  read_number(values, "layer-cache", engine.layer_cache);
  read_number(values, "ramp", engine.ramp);
  read_number(values, "block", engine.block_q);
  engine.block_kv = engine.block_q;
  const auto order = values.find("token-order");
  if (order != values.end() && order->second != "raster" && order->second != "tile") {
    throw UsageError("--token-order: '" + order->second + "' is not raster or tile");
  }
  if (order != values.end() && order->second == "tile") engine.token_order = TokenOrder::kTile;
  const auto forecast = values.find("forecast");
  if (forecast == values.end() || forecast->second == "taylor") return engine;
  if (forecast->second != "newton") {
    throw UsageError("--forecast: '" + forecast->second + "' is not taylor or newton");
  }
  engine.forecast = ForecastKind::kNewton;
  return engine;
}

Sparsity replayed_sparsity(const SparsityArguments& arguments, const RunRecord& run) {
  if (arguments.preset || !arguments.flags.empty()) {
    const std::string name = arguments.preset ? "preset" : arguments.flags.begin()->first;
    throw UsageError("--replay repeats recorded decisions, so --" + name +
                     " cannot be given with it");
  }
  Sparsity sparsity;
  sparsity.preset = run.settings.preset;
  sparsity.policy = run.settings.policy;
  sparsity.policy_options = run.settings.policy_options;
  sparsity.engine = run.settings.engine;
  sparsity.engine.strict = arguments.strict;
  sparsity.replay = &run;
  return sparsity;
}

}  // namespace

void add_sparsity_options(CLI::App& command, SparsityArguments& arguments) {
  const auto add_flag = [&](const std::string& name, const std::string& help) {
    command
        .add_option_function<std::string>(
            "--" + name, [&, name](const std::string& value) { arguments.flags[name] = value; },
            help)
        ->group("Sparsity");
  };
  command
      .add_option("--preset", arguments.preset,
                  "a preset's name, FILE.json, or off for dense; flags below override its values "
                  "[balanced]")
      ->group("Sparsity");
  command
      .add_flag("--strict", arguments.strict, "fail instead of running otherwise than asked for")
      ->group("Sparsity");
  std::string names;
  for (const PolicyInfo& policy : list_policies()) {
    names += (names.empty() ? "" : ", ") + policy.name;
  }
  add_flag("sparsity-policy", names + ", or SKIP+CACHE; docs/policies.md");
  for (const EngineOption& option : kEngineOptions) add_flag(option.name, option.help);
  for (const PolicyInfo& policy : list_policies()) {
    for (const std::string_view option : policy.options) {
      const std::string name(option);
      if (!command.get_option_no_throw("--" + name)) {
        add_flag(name, "policy " + policy.name + ", docs/policies.md");
      }
    }
  }
}

Sparsity dense_sparsity() {
  Sparsity sparsity;
  sparsity.preset = "off";
  return sparsity;
}

void check_option_names(const SparsityArguments& arguments) {
  for (const auto& [name, value] : arguments.flags) {
    if (name != "sparsity-policy" && !is_engine_option(name) && !is_policy_option(name)) {
      throw UsageError("there is no sparsity option '" + name + "'; docs/presets.md lists them");
    }
  }
}

Sparsity resolve_sparsity(const SparsityArguments& arguments, const RunRecord* replay) {
  if (replay) return replayed_sparsity(arguments, *replay);
  Sparsity sparsity = dense_sparsity();
  sparsity.preset = arguments.preset.value_or(kDefaultPreset);
  Values values;
  if (sparsity.preset != "off") values = read_preset(sparsity.preset);
  const auto flag = arguments.flags.find("sparsity-policy");
  if (flag != arguments.flags.end()) values["sparsity-policy"] = flag->second;
  if (values.contains("sparsity-policy")) sparsity.policy = values["sparsity-policy"];

  // A preset's options of another policy do not apply; flags are the user's word and must fit.
  const PolicyInfo policy = find_named_policy(sparsity.policy);
  std::erase_if(values, [&](const auto& value) {
    return is_policy_option(value.first) && !has_option(policy, value.first);
  });
  for (const auto& [name, value] : arguments.flags) values[name] = value;
  for (const auto& [name, value] : values) {
    if (is_policy_option(name)) sparsity.policy_options[name] = value;
  }
  sparsity.engine = read_engine_options(values);
  sparsity.engine.strict = arguments.strict;
  return sparsity;
}

void check_policy(const Sparsity& sparsity) {
  try {
    make_policy(sparsity.policy, sparsity.policy_options);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) throw UsageError(error.what());
    throw;
  }
}

std::unique_ptr<Engine> make_engine(Backend& backend, const Sparsity& sparsity) {
  if (sparsity.replay) {
    return std::make_unique<Engine>(backend, sparsity.engine, make_replay_policy(*sparsity.replay));
  }
  try {
    return std::make_unique<Engine>(backend, sparsity.engine,
                                    make_policy(sparsity.policy, sparsity.policy_options));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) throw UsageError(error.what());
    throw;
  }
}

std::string describe_options(const Sparsity& sparsity) {
  const EngineOptions& engine = sparsity.engine;
  std::ostringstream text;
  text << "warmup " << engine.warmup << ", interval " << engine.interval << ", order "
       << engine.order << ", layer-cache " << engine.layer_cache << ", ramp " << engine.ramp
       << ", block " << engine.block_q;
  if (engine.forecast == ForecastKind::kNewton) text << ", forecast newton";
  if (engine.token_order == TokenOrder::kTile) text << ", token order tile";
  for (const auto& [name, value] : sparsity.policy_options) text << ", " << name << " " << value;
  return text.str();
}

}  // namespace flashomni::cli
