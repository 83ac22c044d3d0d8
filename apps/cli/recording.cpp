#include "recording.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "commands.h"

namespace flashomni::cli {

void add_recording_options(CLI::App& command, RecordingArguments& arguments) {
  command
      .add_option("--record", arguments.record,
                  "RUN.safetensors to write: every decision, for inspect and --replay")
      ->group("Recording");
  command
      .add_option("--replay", arguments.replay,
                  "RUN.safetensors whose request and decisions to repeat; the request's options "
                  "override its values")
      ->group("Recording");
}

std::unique_ptr<RunRecord> read_replay(const RecordingArguments& arguments) {
  const auto folder = std::filesystem::path(arguments.record).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    throw UsageError("--record: there is no folder " + folder.string());
  }
  if (arguments.replay.empty()) return nullptr;
  return std::make_unique<RunRecord>(read_run(arguments.replay));
}

RunRecord* Recording::record() {
  return replayed_ || !arguments_.record.empty() ? &record_ : nullptr;
}

void Recording::finish(const Sparsity& sparsity, const GenerateResult* dense) {
  if (!record()) return;
  record_.settings.preset = sparsity.preset;
  record_.settings.policy_options = sparsity.policy_options;
  if (dense) {
    record_.dense_picture = dense->picture;
    for (const StepProgress& step : dense->steps) {
      record_.dense_step_seconds.push_back(static_cast<float>(step.seconds));
    }
  }
  if (replayed_) differences_ = run_differences(*replayed_, record_);
  if (!arguments_.record.empty()) write_run(arguments_.record, record_);
}

void Recording::add_to(nlohmann::ordered_json& json) const {
  if (!arguments_.record.empty()) json["record"] = arguments_.record;
  if (replayed_) json["replay"] = {{"run", arguments_.replay}, {"differences", differences_}};
}

void Recording::print() const {
  if (!arguments_.record.empty()) std::cout << "Recorded the run in " << arguments_.record << ".\n";
  if (!replayed_) return;
  std::cout << "Replayed " << arguments_.replay;
  if (differences_.empty()) {
    std::cout << ": the same decisions and the same picture, bit for bit.\n";
    return;
  }
  std::cout << ", with differences:";
  for (std::size_t i = 0; i < differences_.size(); ++i) {
    std::cout << (i == 0 ? " " : "; ") << differences_[i];
  }
  std::cout << ".\n";
}

}  // namespace flashomni::cli
