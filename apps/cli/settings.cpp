#include "settings.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "commands.h"
#include "machine.h"

namespace flashomni::cli {
namespace {

bool is_preset(const std::string& base) {
  return base == "off" || base.ends_with(".json") ||
         !find_shipped("presets/" + base + ".json").empty();
}

Sparsity parse_base_and_options(const std::string& text) {
  std::istringstream parts(text);
  SparsityArguments arguments;
  std::string part;
  std::getline(parts, part, ',');
  if (is_preset(part)) {
    arguments.preset = part;
  } else {
    arguments.preset = "off";
    arguments.flags["sparsity-policy"] = part;
  }
  while (std::getline(parts, part, ',')) {
    const std::size_t equals = part.find('=');
    if (equals == std::string::npos) {
      throw UsageError("setting '" + text + "': '" + part + "' is not option=value");
    }
    arguments.flags[part.substr(0, equals)] = part.substr(equals + 1);
  }
  check_option_names(arguments);
  return resolve_sparsity(arguments);
}

}  // namespace

Setting parse_setting(const std::string& text) {
  // A name ends at the first '=' that comes before any option.
  const std::size_t equals = text.find('='), comma = text.find(',');
  if (equals == std::string::npos || comma < equals) return {text, parse_base_and_options(text)};
  return {text.substr(0, equals), parse_base_and_options(text.substr(equals + 1))};
}

std::vector<Setting> read_settings(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw UsageError("--settings: there is no file " + path);
  const auto json = nlohmann::ordered_json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw UsageError("--settings: " + path + " is not a JSON object");
  std::vector<Setting> settings;
  for (const auto& [name, value] : json.items()) {
    if (name == "description") continue;
    if (!value.is_string()) {
      throw UsageError("--settings: " + path + ": the value of '" + name + "' is not a text");
    }
    settings.push_back({name, parse_base_and_options(value.get<std::string>())});
  }
  return settings;
}

std::string identity(const Sparsity& sparsity) {
  if (sparsity.policy == "dense") return "dense";
  return sparsity.policy + ": " + describe_options(sparsity);
}

}  // namespace flashomni::cli
