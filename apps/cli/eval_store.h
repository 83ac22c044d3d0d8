// eval_store.h -- the folder of an evaluation: what was run, and its pictures.
//
//   eval.json     what all runs share; a folder goes on only with the same
//   runs.jsonl    one line a finished run, appended; never rewritten
//   pictures/     one PNG a run
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "flashomni/pipeline.h"

namespace flashomni::cli {

// One finished generation. Of the dense run, psnr_db is 100 and ssim 1.
struct EvalRun {
  std::string setting;  // identity() of it
  std::string prompt;
  std::uint64_t seed = 0;
  double seconds = 0;      // of the denoising, on the wall
  double cpu_seconds = 0;  // of the whole generation, summed over threads
  double macs_done = 0, macs_total = 0;
  double psnr_db = 100, ssim = 1;
  int max_abs_diff = 0;
  double attention_sparsity = 0;
  int layers_cached = 0;
  std::string commit, picture;  // the file's name in pictures/
};

class EvalStore {
 public:
  // Makes the folder or goes on with it. Throws UsageError naming the first fact that differs from
  // those it was begun with.
  EvalStore(std::filesystem::path folder, const nlohmann::ordered_json& facts);

  // nullptr if it has not been run.
  const EvalRun* find(const std::string& setting, const std::string& prompt,
                      std::uint64_t seed) const;
  // Writes the picture, then appends the line.
  void add(EvalRun run, const Picture& picture);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path picture_path(const EvalRun& run) const;
  // What a program measured of a picture, kept in NAME.jsonl; measured once a picture.
  std::map<std::string, nlohmann::json> read_notes(const std::string& name) const;
  void add_note(const std::string& name, const std::string& picture, const nlohmann::json& note);

 private:
  std::filesystem::path folder_;
  std::map<std::string, EvalRun> runs_;  // by key of setting, prompt and seed
};

}  // namespace flashomni::cli
