// record.h -- what a generation decided and did, as a file, and the same decisions again.
//
// Pipeline::generate() fills a RunRecord; `inspect` draws one. File format: docs/record.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "flashomni/pipeline.h"

namespace flashomni {

// One layer of one branch at one step.
struct LayerRun {
  LayerAction action = LayerAction::kDense;
  int symbols = -1;   // index in RunRecord::symbols: those made or obeyed here; -1: none
  float seconds = 0;  // on GPUs: of enqueueing
  float macs = 0;     // multiply-adds done
  bool operator==(const LayerRun&) const = default;
};

// What ran besides the request. The caller of generate() fills `preset` and `policy_options`, the
// pipeline the rest.
struct RunSettings {
  std::string model, backend, device, dtype;
  std::string preset, policy;
  PolicyOptions policy_options;
  EngineOptions engine;
};

struct RunRecord {
  GenerateRequest request;
  RunSettings settings;

  std::vector<Segment> segments;  // of the joint sequence
  int num_heads = 0, num_layers = 0;
  int num_double_layers = 0;  // the first of them, with weights of their own for text and image
  int num_branches = 0;       // 1, or 2: prompt and negative prompt
  int grid_width = 0, grid_height = 0;    // of the picture, in tokens
  std::vector<std::int32_t> token_order;  // raster index of every image token, in sequence order

  std::vector<StepProgress> steps;
  std::vector<LayerRun> layers;  // [step, branch, layer]
  std::vector<SparseSymbols> symbols;

  EngineStats sparsity;
  double seconds_total = 0, seconds_denoise = 0;
  double macs_total = 0, macs_done = 0;
  std::vector<OpTime> op_times;
  std::vector<Fallback> fallbacks;
  std::vector<std::string> warnings;
  Picture picture;
  // The same request drawn dense, if the caller has it: a picture and the seconds of its steps.
  Picture dense_picture;
  std::vector<float> dense_step_seconds;

  const LayerRun& layer(int step, int branch, int layer) const {
    return layers[(static_cast<std::size_t>(step) * num_branches + branch) * num_layers + layer];
  }
};

// The share of token pairs that the attention of `layer`, one of run.layers, computed.
double attention_density(const RunRecord& run, const LayerRun& layer);

// Whole or not at all. Throws kInvalidArgument for a record that no generation has filled, kIo if
// the file cannot be written.
void write_run(const std::filesystem::path& path, const RunRecord& run);
// Throws kIo naming the file and what is wrong with it.
RunRecord read_run(const std::filesystem::path& path);

// The decisions of `run` again, under the name of the policy that made them. For an engine with
// run.settings.engine and a request that check_replay() lets pass; `select` throws
// kInvalidArgument where the record has no symbols or the sequence has other blocks or heads.
std::unique_ptr<SparsityPolicy> make_replay_policy(const RunRecord& run);

// Throws kInvalidArgument if the decisions of `run` do not fit: another picture size, number of
// steps, of branches (cfg 1 or not), of layers or heads.
void check_replay(const RunRecord& run, const Pipeline& pipeline, const GenerateRequest& request);

// What two runs differ in, one phrase each: request and settings by value, then the first other
// decision, then the picture. Empty: the same decisions gave the same picture bit for bit.
std::vector<std::string> run_differences(const RunRecord& recorded, const RunRecord& now);

}  // namespace flashomni
