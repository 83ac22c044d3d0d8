#include "eval_store.h"

#include <cstdio>
#include <fstream>
#include <utility>
#include <vector>

#include "commands.h"
#include "flashomni/error.h"
#include "flashomni/png.h"

namespace flashomni::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string key_of(const std::string& setting, const std::string& prompt, std::uint64_t seed) {
  return setting + "\n" + prompt + "\n" + std::to_string(seed);
}

// 64-bit FNV-1a: short file names that stay the same from run to run.
std::string hash_text(const std::string& text) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char character : text) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 1099511628211u;
  }
  char digits[20];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  return digits;
}

ordered_json to_json(const EvalRun& run) {
  return {{"setting", run.setting},
          {"prompt", run.prompt},
          {"seed", run.seed},
          {"seconds", run.seconds},
          {"cpu_seconds", run.cpu_seconds},
          {"macs_done", run.macs_done},
          {"macs_total", run.macs_total},
          {"psnr_db", run.psnr_db},
          {"ssim", run.ssim},
          {"max_abs_diff", run.max_abs_diff},
          {"attention_sparsity", run.attention_sparsity},
          {"layers_cached", run.layers_cached},
          {"commit", run.commit},
          {"picture", run.picture}};
}

EvalRun run_from(const json& line) {
  return {.setting = line.at("setting"),
          .prompt = line.at("prompt"),
          .seed = line.at("seed"),
          .seconds = line.at("seconds"),
          .cpu_seconds = line.at("cpu_seconds"),
          .macs_done = line.at("macs_done"),
          .macs_total = line.at("macs_total"),
          .psnr_db = line.at("psnr_db"),
          .ssim = line.at("ssim"),
          .max_abs_diff = line.at("max_abs_diff"),
          .attention_sparsity = line.at("attention_sparsity"),
          .layers_cached = line.at("layers_cached"),
          .commit = line.at("commit"),
          .picture = line.at("picture")};
}

// The lines that parse: a crash may have cut one off.
std::vector<json> read_lines(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_object()) lines.push_back(std::move(line));
  }
  return lines;
}

void append_line(const std::filesystem::path& path, const std::string& line) {
  std::ofstream file(path, std::ios::app);
  file << line << std::endl;
  if (!file) throw Error(ErrorCode::kIo, path.string() + " could not be written");
}

// So that what is appended to a line that a crash cut off stays whole.
void end_last_line(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::ate);
  if (!file || file.tellg() == 0) return;
  file.seekg(-1, std::ios::end);
  if (file.get() != '\n') append_line(path, "");
}

}  // namespace

EvalStore::EvalStore(std::filesystem::path folder, const ordered_json& facts)
    : folder_(std::move(folder)) {
  std::error_code failed;
  std::filesystem::create_directories(folder_ / "pictures", failed);
  if (failed) throw UsageError("--out: " + folder_.string() + " cannot be made");
  const std::filesystem::path path = folder_ / "eval.json";
  if (std::filesystem::exists(path)) {
    std::ifstream file(path);
    const json begun = json::parse(file, nullptr, /*allow_exceptions=*/false);
    for (const auto& [name, value] : facts.items()) {
      if (begun.is_object() && begun.contains(name) && begun[name] == value) continue;
      throw UsageError("--out: " + folder_.string() + " was begun with another " + name +
                       "; take another folder");
    }
  } else {
    append_line(path, facts.dump(1));
  }
  end_last_line(folder_ / "runs.jsonl");
  for (const json& line : read_lines(folder_ / "runs.jsonl")) {
    EvalRun run = run_from(line);
    std::string key = key_of(run.setting, run.prompt, run.seed);
    runs_.insert_or_assign(std::move(key), std::move(run));
  }
}

const EvalRun* EvalStore::find(const std::string& setting, const std::string& prompt,
                               std::uint64_t seed) const {
  const auto found = runs_.find(key_of(setting, prompt, seed));
  return found == runs_.end() ? nullptr : &found->second;
}

void EvalStore::add(EvalRun run, const Picture& picture) {
  const std::string key = key_of(run.setting, run.prompt, run.seed);
  run.picture = run.setting.substr(0, run.setting.find(':')) + "-" + hash_text(key) + ".png";
  write_png(picture_path(run), picture, {{"parameters", key}});
  append_line(folder_ / "runs.jsonl", to_json(run).dump());
  runs_.insert_or_assign(key, std::move(run));
}

std::filesystem::path EvalStore::picture_path(const EvalRun& run) const {
  return folder_ / "pictures" / run.picture;
}

std::map<std::string, json> EvalStore::read_notes(const std::string& name) const {
  std::map<std::string, json> notes;
  for (const json& line : read_lines(folder_ / (name + ".jsonl"))) {
    notes[line.at("picture")] = line.at(name);
  }
  return notes;
}

void EvalStore::add_note(const std::string& name, const std::string& picture, const json& note) {
  append_line(folder_ / (name + ".jsonl"), json{{"picture", picture}, {name, note}}.dump());
}

}  // namespace flashomni::cli
