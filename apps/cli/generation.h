// generation.h -- what the subcommands that draw share: arguments, loading, one run, its record.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "backend_options.h"
#include "flashomni/pipeline.h"
#include "recording.h"
#include "sparsity.h"

namespace flashomni::cli {

// The model and how it draws, whatever the prompt and the sparsity.
struct ModelArguments {
  std::string model, dtype = "auto";
  std::optional<int> width, height, steps;  // absent: of the replayed run, or the model's default
  std::optional<double> cfg, guidance;
  BackendChoice backend;
};

struct GenerationArguments : ModelArguments {
  std::string prompt, out;
  std::optional<std::uint64_t> seed;  // absent: of the replayed run, or 0
  SparsityArguments sparsity;
  RecordingArguments recording;
  bool json = false, verbose = false;
};

void add_model_options(CLI::App& command, ModelArguments& arguments);
void add_generation_options(CLI::App& command, GenerationArguments& arguments);

// The folder named, or the shipped one. Throws UsageError if it holds no model.
std::filesystem::path find_model(const std::string& wanted);

// A loaded model and what to draw with it.
struct Session {
  Pipeline pipeline;
  std::filesystem::path model;
  DType dtype;
  GenerateRequest request;
};
// Says on stderr what it loads; the request is that of `replay`, if there is one, and else has no
// prompt yet. Throws UsageError if there is no model.
Session open_model(const ModelArguments& arguments, const RunRecord* replay = nullptr);
// The same with prompt and seed. Throws UsageError also if there is no prompt or no folder to write
// to, or if the request does not fit the decisions of `replay`.
Session open_session(const GenerationArguments& arguments, const RunRecord* replay = nullptr);

// One forward pass of the request's size, so that the next times are those of a warm program.
void warm_up(Session& session);
// Draws with a progress bar named `label`, or silently. Here and in warm_up,
// a request that the model cannot draw is a UsageError.
GenerateResult draw(Session& session, const Sparsity& sparsity, const std::string& label,
                    RunRecord* record = nullptr);
GenerateResult draw_silently(Session& session, const Sparsity& sparsity);

// The record of a run, as `generate --json` prints it.
nlohmann::ordered_json to_json(const Session& session, const Sparsity& sparsity,
                               const GenerateResult& result, const std::string& out);
// Prompt and settings in one text, for the picture's `parameters` chunk.
std::string parameters_text(const Session& session, const Sparsity& sparsity);

// Sentences for people, on stdout: what was left out and what ran otherwise than asked for.
void print_sparsity(const Sparsity& sparsity, const GenerateResult& result);
// Where the time went, on stdout.
void print_op_times(const GenerateResult& result);
// Seconds of attention and all matrix products over the denoising time.
double kernel_share(const GenerateResult& result);

}  // namespace flashomni::cli
