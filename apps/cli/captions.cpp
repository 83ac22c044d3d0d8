#include "captions.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "commands.h"

namespace flashomni::cli {
namespace {

using nlohmann::json;

Caption caption_from(const json& entry) {
  Caption caption{entry.at("text"), {}};
  const json objects = entry.value("objects", json::array());
  for (const json& object : objects) {
    caption.objects.push_back({.sprite = object.at("sprite"),
                               .tint = object.value("tint", ""),
                               .x = object.at("x"),
                               .y = object.at("y"),
                               .size = object.at("size"),
                               .any_x = object.value("any_x", false)});
  }
  return caption;
}

std::vector<Caption> read_json(const std::filesystem::path& path, const char* option) {
  std::ifstream file(path);
  try {
    std::vector<Caption> captions;
    const json list = json::parse(file);
    for (const json& entry : list.at("captions")) {
      captions.push_back(caption_from(entry));
    }
    return captions;
  } catch (const json::exception& error) {
    throw UsageError(std::string(option) + ": " + path.string() + ": " + error.what());
  }
}

}  // namespace

std::vector<Caption> read_captions(const std::filesystem::path& path, const char* option) {
  std::vector<Caption> captions;
  if (path.extension() == ".json") {
    captions = read_json(path, option);
  } else {
    std::ifstream file(path);
    if (!file) throw UsageError(std::string(option) + ": there is no file " + path.string());
    for (std::string line; std::getline(file, line);) {
      if (!line.empty() && line[0] != '#') captions.push_back({line, {}});
    }
  }
  if (captions.empty()) {
    throw UsageError(std::string(option) + ": " + path.string() + " holds no prompt");
  }
  return captions;
}

}  // namespace flashomni::cli
