// recording.h -- --record and --replay: runs as files, and what a replayed one did otherwise.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "flashomni/record.h"
#include "sparsity.h"

namespace CLI {
class App;
}

namespace flashomni::cli {

struct RecordingArguments {
  std::string record, replay;  // files; empty: not asked for
};

void add_recording_options(CLI::App& command, RecordingArguments& arguments);

// The run of --replay, or nothing. Throws UsageError if --record names a folder that is not there.
std::unique_ptr<RunRecord> read_replay(const RecordingArguments& arguments);

// What comes of a recorded run: the file of --record, the comparison of --replay.
class Recording {
 public:
  Recording(const RecordingArguments& arguments, const RunRecord* replayed)
      : arguments_(arguments), replayed_(replayed) {}

  // To be filled by draw(); nullptr where nothing asks for it.
  RunRecord* record();
  // After the run: completes the record, writes it, compares it. `dense` is the same request drawn
  // dense, if there is one.
  void finish(const Sparsity& sparsity, const GenerateResult* dense = nullptr);
  void add_to(nlohmann::ordered_json& json) const;
  void print() const;  // sentences on stdout

 private:
  const RecordingArguments& arguments_;
  const RunRecord* replayed_;
  RunRecord record_;
  std::vector<std::string> differences_;
};

}  // namespace flashomni::cli
