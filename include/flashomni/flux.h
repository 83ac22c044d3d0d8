// flux.h -- the FLUX.1 transformer: diffusers' FluxTransformer2DModel, any sizes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>

#include "flashomni/backend.h"
#include "flashomni/engine.h"

namespace flashomni {

// transformer/config.json
struct FluxConfig {
  int in_channels = 64;
  int out_channels = 64;
  int num_layers = 19;         // double-stream blocks
  int num_single_layers = 38;  // single-stream blocks
  int head_dim = 128;
  int num_heads = 24;
  int joint_attention_dim = 4096;
  int pooled_projection_dim = 768;
  bool guidance_embeds = false;
  std::array<int, 3> axes_dims_rope{16, 56, 56};

  int hidden_dim() const { return num_heads * head_dim; }
  int total_layers() const { return num_layers + num_single_layers; }
  // Throws kIo if the file is unreadable, kInvalidArgument naming a field that does not fit.
  static FluxConfig from_json(const std::filesystem::path& path);
};

// The inputs of one forward pass of one sample.
struct FluxInput {
  ConstTensorView latents;  // [image_tokens, in_channels] f32, in the order of Engine::places()
  ConstTensorView text;     // [text_tokens, joint_attention_dim] f32
  ConstTensorView pooled;   // [pooled_projection_dim] f32
  float timestep = 0;       // in [0, 1], 1 = noise; multiplied by 1000 inside
  float guidance = 1;       // value for the guidance embedder; ignored without guidance_embeds
};

// Sees the hidden states after each part of a forward pass: "temb", "double.0.img",
// "double.0.txt", "single.3", ... Host backends only; for tests and analysis.
using FluxObserver = std::function<void(std::string_view name, ConstTensorView value)>;

// Told after each layer of a forward pass has been enqueued.
using LayerCallback = std::function<void(int layer)>;

class FluxTransformer {
 public:
  // `directory` holds config.json and diffusion_pytorch_model.safetensors (or its index and
  // shards). Weights are packed for `backend` in `dtype` (kF32, kBF16).
  static FluxTransformer load(const std::filesystem::path& directory, Backend& backend,
                              DType dtype);
  ~FluxTransformer();
  FluxTransformer(FluxTransformer&&) noexcept;
  FluxTransformer& operator=(FluxTransformer&&) noexcept;

  const FluxConfig& config() const;
  // Prepares buffers, rotary tables (text ids 0, image ids (0, y, x)) and `engine` for a
  // generation of grid_height x grid_width image tokens, in the engine's token order, after
  // text_tokens text tokens.
  void begin(Engine& engine, int text_tokens, int grid_height, int grid_width, int num_steps,
             int num_branches);
  // Predicts the velocity: out [image_tokens, out_channels] f32, in the order of the latents. The
  // caller has called engine.begin_step(). Allocates nothing.
  void forward(Engine& engine, const FluxInput& input, TensorView out);
  void set_observer(FluxObserver observer);
  void set_layer_callback(LayerCallback callback);

 private:
  struct Impl;
  explicit FluxTransformer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flashomni
