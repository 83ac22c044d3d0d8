// generate.cpp -- prompt to picture: the denoising loop and what is told about it.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "core/check.h"
#include "pipeline/noise.h"
#include "pipeline/pipeline_impl.h"
#include "pipeline/run_recorder.h"

namespace flashomni {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// The buffers and inputs of one generation. `x` lives on the host, where the update of a few
// hundred kilobytes costs nothing beside a forward pass.
struct Pipeline::Impl::Run {
  Run(Impl& pipeline, const GenerateRequest& request, Engine& engine);
  void start(ConstTensorView noise);
  void fill_noise(ConstTensorView noise);
  // Moves the rows of x between raster order and the sequence's, which is undone at the end.
  void order_tokens();
  void restore_raster();
  void step(int step);
  void predict(int step, int branch);
  void record_into(RunRecord& record);
  Picture picture() const;

  Impl& pipeline;
  const GenerateRequest& request;
  Engine& engine;
  const int grid_height, grid_width, num_branches;
  std::vector<float> sigmas;
  std::vector<std::string> warnings;
  std::vector<TextEmbedding> text;  // of every branch: prompt, negative prompt
  Tensor x, velocity[2];            // host
  Tensor device_x, device_velocity;
  std::optional<RunRecorder> recorder;
};

Pipeline::Impl::Run::Run(Impl& pipeline, const GenerateRequest& request, Engine& engine)
    : pipeline(pipeline),
      request(request),
      engine(engine),
      grid_height(request.height / pipeline.patch),
      grid_width(request.width / pipeline.patch),
      num_branches(request.cfg == 1.0 ? 1 : 2) {
  const int image_tokens = grid_height * grid_width;
  sigmas = pipeline.scheduler.sigmas(request.steps, image_tokens);
  TokenizedPrompt prompt = pipeline.tokenizer.encode(request.prompt);
  warnings = std::move(prompt.warnings);
  text.push_back(pipeline.encode(prompt.ids));
  if (num_branches == 2) text.push_back(pipeline.encode(pipeline.negative_ids));
  const Layout layout{image_tokens, pipeline.transformer.config().in_channels};
  x = Tensor::host(DType::kF32, layout);
  for (int branch = 0; branch < num_branches; ++branch) {
    velocity[branch] = Tensor::host(DType::kF32, layout);
  }
  device_x = pipeline.backend.allocate(DType::kF32, layout);
  device_velocity = pipeline.backend.allocate(DType::kF32, layout);
  pipeline.transformer.begin(engine, pipeline.text_encoder.text_tokens(), grid_height, grid_width,
                             request.steps, num_branches);
}

void Pipeline::Impl::Run::start(ConstTensorView noise) {
  fill_noise(noise);
  order_tokens();
}

void Pipeline::Impl::Run::order_tokens() {
  const Tensor raster = x.clone();
  float* row = x.as<float>();
  for (const TokenPlace& place : engine.places()) {
    const index_t from = index_t{place.row} * grid_width + place.column;
    row = std::copy_n(raster.as<float>() + from * x.size(1), x.size(1), row);
  }
}

void Pipeline::Impl::Run::restore_raster() {
  const Tensor ordered = x.clone();
  const float* row = ordered.as<float>();
  for (const TokenPlace& place : engine.places()) {
    const index_t to = index_t{place.row} * grid_width + place.column;
    std::copy_n(row, x.size(1), x.as<float>() + to * x.size(1));
    row += x.size(1);
  }
}

void Pipeline::Impl::Run::fill_noise(ConstTensorView noise) {
  const std::span<float> values(x.as<float>(), static_cast<std::size_t>(x.num_elements()));
  if (!noise) return fill_normal(request.seed, values);
  FO_CHECK(noise.dtype == DType::kF32 && noise.layout.is_contiguous() && noise.rank() == 2 &&
               noise.size(0) == x.size(0) && noise.size(1) == x.size(1) &&
               noise.device.type == DeviceType::kCpu,
           "generate: noise is %s %s, must be contiguous f32 %s in host memory",
           dtype_name(noise.dtype).data(), noise.layout.to_string().c_str(),
           x.view().layout.to_string().c_str());
  std::copy_n(noise.as<float>(), values.size(), values.data());
}

void Pipeline::Impl::Run::predict(int step, int branch) {
  engine.begin_step(step, branch);
  if (recorder) recorder->begin_branch(branch);
  FluxInput input;
  input.latents = device_x;
  input.text = text[branch].tokens;
  input.pooled = text[branch].pooled;
  input.timestep = sigmas[step];
  input.guidance = static_cast<float>(request.guidance);
  pipeline.transformer.forward(engine, input, device_velocity);
  pipeline.backend.copy(device_velocity, velocity[branch], {});
  pipeline.backend.synchronize({});
}

// One Euler step along the guided velocity. Allocates nothing on dispatch steps.
void Pipeline::Impl::Run::step(int step) {
  pipeline.backend.copy(x, device_x, {});
  for (int branch = 0; branch < num_branches; ++branch) predict(step, branch);
  const float change = sigmas[step + 1] - sigmas[step];
  const auto cfg = static_cast<float>(request.cfg);
  const float* prompt = velocity[0].as<float>();
  const float* negative = velocity[num_branches - 1].as<float>();
  for (index_t i = 0; i < x.num_elements(); ++i) {
    x.as<float>()[i] += change * (negative[i] + cfg * (prompt[i] - negative[i]));
  }
}

// What is known before the first step; the recorder adds what happens in it and after it.
void Pipeline::Impl::Run::record_into(RunRecord& record) {
  const FluxConfig& config = pipeline.transformer.config();
  record = {};
  record.request = request;
  record.settings.model = pipeline.model();
  record.settings.backend = pipeline.backend.name();
  record.settings.device = pipeline.backend.description();
  record.settings.dtype = dtype_name(pipeline.dtype);
  record.settings.policy = engine.policy().name();
  record.settings.engine = engine.options();
  const int text_tokens = pipeline.text_encoder.text_tokens();
  const int image_tokens = grid_height * grid_width;
  record.segments = make_segments(text_tokens + image_tokens, text_tokens, TextPosition::kFirst);
  record.num_heads = config.num_heads;
  record.num_layers = config.total_layers();
  record.num_double_layers = config.num_layers;
  record.num_branches = num_branches;
  record.grid_width = grid_width;
  record.grid_height = grid_height;
  for (const TokenPlace& place : engine.places()) {
    record.token_order.push_back(place.row * grid_width + place.column);
  }
  recorder.emplace(record, pipeline.transformer, engine, pipeline.backend);
}

// Token channel = c * patch^2 + row * patch + column of a patch; [-1, 1] to 8 bit.
Picture Pipeline::Impl::Run::picture() const {
  const int patch = pipeline.patch, width = grid_width * patch, height = grid_height * patch;
  Picture picture{width, height, {}};
  picture.rgb.reserve(static_cast<std::size_t>(width) * height * 3);
  for (int pixel = 0; pixel < width * height; ++pixel) {
    const int row = pixel / width, column = pixel % width;
    const index_t token = index_t{row / patch} * grid_width + column / patch;
    const float* channels = x.as<float>() + token * x.size(1);
    for (int c = 0; c < 3; ++c) {
      const float value = channels[(c * patch + row % patch) * patch + column % patch];
      const float byte = std::nearbyint((std::clamp(value, -1.0f, 1.0f) + 1) * 127.5f);
      picture.rgb.push_back(static_cast<std::uint8_t>(byte));
    }
  }
  return picture;
}

void Pipeline::Impl::check(const GenerateRequest& request, const char* function) const {
  FO_CHECK(request.width >= patch && request.width % patch == 0 && request.height >= patch &&
               request.height % patch == 0,
           "%s: the picture is %d x %d pixels, both must be multiples of %d", function,
           request.width, request.height, patch);
  FO_CHECK(request.steps >= 1, "%s: steps is %d, must be at least 1", function, request.steps);
  FO_CHECK(std::isfinite(request.cfg) && std::isfinite(request.guidance),
           "%s: cfg is %g and guidance %g, must be finite", function, request.cfg,
           request.guidance);
}

// Step 0 is full under every policy, so it tells what all of them cost dense.
double Pipeline::Impl::macs_without_policy() const {
  return backend.macs() - backend.macs(OpKind::kPolicy);
}

void Pipeline::Impl::report_costs(GenerateResult& result) const {
  result.macs_done = backend.macs();
  for (int i = 0; i < kNumOpKinds; ++i) {
    const auto kind = static_cast<OpKind>(i);
    const OpCost cost = backend.cost(kind);
    result.op_times.push_back(
        {std::string(op_kind_name(kind)), cost.seconds, cost.macs, cost.calls});
  }
}

void Pipeline::Impl::finish(const GenerateResult& result, RunRecord& record) const {
  record.steps = result.steps;
  record.sparsity = result.sparsity;
  record.seconds_total = result.seconds_total;
  record.seconds_denoise = result.seconds_denoise;
  record.macs_total = result.macs_total;
  record.macs_done = result.macs_done;
  record.op_times = result.op_times;
  record.fallbacks = result.fallbacks;
  record.warnings = result.warnings;
  record.picture = result.picture;
}

void Pipeline::warm_up(const GenerateRequest& request) {
  impl_->check(request, "warm_up");
  Engine engine(impl_->backend, EngineOptions{}, make_policy("dense", {}));
  GenerateRequest one_step = request;
  one_step.steps = 1;
  one_step.cfg = 1;
  Impl::Run run(*impl_, one_step, engine);
  run.start({});
  run.step(0);
}

GenerateResult Pipeline::generate(const GenerateRequest& request, Engine& engine,
                                  const ProgressCallback& progress, ConstTensorView noise,
                                  RunRecord* record) {
  const Clock::time_point start = Clock::now();
  impl_->check(request, "generate");
  FO_CHECK(&engine.backend() == &impl_->backend,
           "generate: the engine runs on another backend, make it with pipeline.backend()");
  Impl::Run run(*impl_, request, engine);
  run.start(noise);
  if (record) run.record_into(*record);
  GenerateResult result;
  result.steps.reserve(static_cast<std::size_t>(request.steps));
  impl_->backend.reset();
  const Clock::time_point denoise = Clock::now();
  for (int step = 0; step < request.steps; ++step) {
    const Clock::time_point begin = Clock::now();
    run.step(step);
    result.steps.push_back({step, request.steps, engine.step_kind(step), seconds_since(begin)});
    if (step == 0) result.macs_total = impl_->macs_without_policy() * request.steps;
    if (progress) progress(result.steps.back());
  }
  result.seconds_denoise = seconds_since(denoise);
  impl_->report_costs(result);
  run.restore_raster();
  result.picture = run.picture();
  result.latents = std::move(run.x);
  result.sparsity = engine.stats();
  result.fallbacks = engine.fallbacks();
  result.warnings = std::move(run.warnings);
  result.seconds_total = seconds_since(start);
  if (record) impl_->finish(result, *record);
  return result;
}

}  // namespace flashomni
