// json_file.h -- the JSON files of a model directory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "core/check.h"

namespace flashomni {

// Throws kIo naming the file if it is unreadable or not JSON.
inline nlohmann::json read_json_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) FO_FAIL(kIo, "pipeline: cannot open %s", path.c_str());
  nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (json.is_discarded()) FO_FAIL(kIo, "pipeline: %s is not JSON", path.c_str());
  return json;
}

// `json[key]`, or `fallback` where there is none. Throws kInvalidArgument naming file and key if
// the value is of another type.
template <typename T>
T json_value(const std::filesystem::path& path, const nlohmann::json& json, const char* key,
             T fallback) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return fallback;
  try {
    return found->get<T>();
  } catch (const nlohmann::json::exception&) {
    FO_FAIL(kInvalidArgument, "pipeline: %s: %s is %s", path.c_str(), key, found->dump().c_str());
  }
}

// The same for a value that must be there.
template <typename T>
T json_value(const std::filesystem::path& path, const nlohmann::json& json, const char* key) {
  FO_CHECK(json.is_object() && json.contains(key), "pipeline: %s has no %s", path.c_str(), key);
  return json_value<T>(path, json, key, T{});
}

}  // namespace flashomni
