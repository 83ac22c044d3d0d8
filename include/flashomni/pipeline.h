// pipeline.h -- prompt to picture: tokenizer, text encoder, scheduler, guidance, denoising loop.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/engine.h"
#include "flashomni/flux.h"

namespace flashomni {

// 8-bit RGB, row-major.
struct Picture {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

struct GenerateRequest {
  std::string prompt;
  int width = 128, height = 128;  // pixels, multiples of the model's patch
  int steps = 20;
  double cfg = 3.0;        // true classifier-free guidance: 1 = off, one branch
  double guidance = 1.0;   // value for the guidance embedder
  std::uint64_t seed = 0;  // noise equals torch.randn with a CPU generator of this seed
};

struct StepProgress {
  int step = 0, num_steps = 0;
  StepKind kind = StepKind::kDense;
  double seconds = 0;  // of this step
};
using ProgressCallback = std::function<void(const StepProgress&)>;

// Where the time of a generation went; sums over all steps and branches.
struct OpTime {
  std::string op;  // "attention", "gemm_q", "gemm_o", "linear", "policy", "norm", "other"
  double seconds = 0;
  double macs = 0;
  std::int64_t calls = 0;
};

struct GenerateResult {
  Picture picture;
  Tensor latents;  // [image_tokens, channels] f32: the last x, before clamping to 8 bit
  double seconds_total = 0, seconds_denoise = 0;
  std::vector<StepProgress> steps;
  EngineStats sparsity;
  std::vector<Fallback> fallbacks;
  double macs_total = 0, macs_done = 0;  // of the denoising steps; total = all of them dense
  std::vector<OpTime> op_times;
  std::vector<std::string> warnings;  // unknown words and the like
};

struct RunRecord;  // record.h

struct PipelineDefaults {
  int width = 128, height = 128, steps = 20;
  double cfg = 1, guidance = 1;
};

class Pipeline {
 public:
  // A diffusers-style directory with model_index.json. `dtype` kF32 or kBF16.
  static Pipeline load(const std::filesystem::path& directory, std::unique_ptr<Backend> backend,
                       DType dtype);
  ~Pipeline();
  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;

  const PipelineDefaults& defaults() const;  // from model_index.json
  const FluxConfig& config() const;
  Backend& backend() const;
  DType dtype() const;
  // The directory's name and, in hexadecimal, a hash of samples of the transformer's weights.
  std::string model() const;

  // Runs one forward pass of the request's size so that the next generate() is warm.
  void warm_up(const GenerateRequest& request);
  // `noise` [image_tokens, channels] f32 replaces the seeded noise (tests, image variations).
  // `record` receives what was decided and done, layer by layer.
  GenerateResult generate(const GenerateRequest& request, Engine& engine,
                          const ProgressCallback& progress = {}, ConstTensorView noise = {},
                          RunRecord* record = nullptr);

 private:
  struct Impl;
  explicit Pipeline(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flashomni
