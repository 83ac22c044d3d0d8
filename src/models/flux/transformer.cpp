// transformer.cpp -- FluxTransformer: embedders, blocks, final projection.
// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>

#include "core/check.h"
#include "flashomni/flux.h"
#include "models/flux/blocks.h"
#include "models/flux/buffers.h"
#include "models/flux/modulation.h"
#include "models/flux/rope.h"
#include "models/flux/weights.h"

namespace flashomni {

using flux::Buffers;

struct FluxTransformer::Impl {
  FluxConfig config;
  Backend& backend;
  DType dtype;
  flux::FluxWeights weights;
  Buffers buffers{};
  FluxObserver observer{};
  LayerCallback layer_callback{};

  void allocate(int text_tokens, int image_tokens);
  void check_input(const FluxInput& input, TensorView out) const;
  void run_layers(Engine& engine);
  void observe(const char* kind, int index, const char* part, ConstTensorView value) const;
};

FluxTransformer::FluxTransformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FluxTransformer::~FluxTransformer() = default;
FluxTransformer::FluxTransformer(FluxTransformer&&) noexcept = default;
FluxTransformer& FluxTransformer::operator=(FluxTransformer&&) noexcept = default;

FluxTransformer FluxTransformer::load(const std::filesystem::path& directory, Backend& backend,
                                      DType dtype) {
  FO_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "flux: dtype is %s, must be f32 or bf16",
           std::string(dtype_name(dtype)).c_str());
  const FluxConfig config = FluxConfig::from_json(directory / "config.json");
  return FluxTransformer(std::unique_ptr<Impl>(
      new Impl{config, backend, dtype, flux::load_weights(directory, config, backend, dtype)}));
}

const FluxConfig& FluxTransformer::config() const { return impl_->config; }

void FluxTransformer::set_observer(FluxObserver observer) { impl_->observer = std::move(observer); }
void FluxTransformer::set_layer_callback(LayerCallback callback) {
  impl_->layer_callback = std::move(callback);
}

void FluxTransformer::Impl::allocate(int text_tokens, int image_tokens) {
  const index_t tokens = text_tokens + image_tokens, dim = config.hidden_dim();
  constexpr index_t kSinusoidDim = 256;
  buffers = {};
  buffers.text_tokens = text_tokens;
  buffers.image_tokens = image_tokens;
  buffers.hidden = backend.allocate(DType::kF32, {tokens, dim});
  buffers.normed = backend.allocate(dtype, {tokens, dim});
  buffers.branch = backend.allocate(dtype, {tokens, dim});
  buffers.mlp_hidden = backend.allocate(dtype, {tokens, 4 * dim});
  buffers.rope_cos = backend.allocate(DType::kF32, {tokens, config.head_dim / 2});
  buffers.rope_sin = backend.allocate(DType::kF32, {tokens, config.head_dim / 2});
  for (Tensor* vector : {&buffers.temb, &buffers.temb_part, &buffers.temb_inner}) {
    *vector = backend.allocate(DType::kF32, {1, dim});
  }
  buffers.sinusoid = backend.allocate(DType::kF32, {1, kSinusoidDim});
  buffers.condition = backend.allocate(dtype, {1, dim});
  buffers.host_sinusoid = Tensor::host(DType::kF32, {1, kSinusoidDim});
  buffers.host_temb = Tensor::host(DType::kF32, {1, dim});
  buffers.host_condition = Tensor::host(dtype, {1, dim});
  for (Tensor& modulation : buffers.modulation) {
    modulation = backend.allocate(DType::kF32, {1, 6 * dim});
  }
  buffers.final_normed = backend.allocate(DType::kF32, {image_tokens, dim});
}

void FluxTransformer::begin(Engine& engine, int text_tokens, int grid_height, int grid_width,
                            int num_steps, int num_branches) {
  Impl& m = *impl_;
  FO_CHECK(&engine.backend() == &m.backend, "flux: the engine runs on another backend (%s)",
           std::string(engine.backend().name()).c_str());
  FO_CHECK(text_tokens >= 1 && grid_height >= 1 && grid_width >= 1,
           "flux: %d text tokens and a grid of %d x %d image tokens, must be at least 1 and 1 x 1",
           text_tokens, grid_height, grid_width);
  const int image_tokens = grid_height * grid_width;
  if (m.buffers.text_tokens != text_tokens || m.buffers.image_tokens != image_tokens) {
    m.allocate(text_tokens, image_tokens);
  }
  const EngineOptions& options = engine.options();
  std::vector<TokenPlace> places =
      place_tokens({1, grid_height, grid_width}, options.token_order, options.block_q);
  const flux::RopeTensors rope =
      flux::make_rope_tables(text_tokens, places, m.config.axes_dims_rope);
  m.backend.copy(rope.cos, m.buffers.rope_cos, {});
  m.backend.copy(rope.sin, m.buffers.rope_sin, {});
  m.backend.synchronize({});
  engine.begin(
      {.segments = make_segments(text_tokens + image_tokens, text_tokens, TextPosition::kFirst),
       .num_heads = m.config.num_heads,
       .head_dim = m.config.head_dim,
       .hidden_dim = m.config.hidden_dim(),
       .dtype = m.dtype,
       .num_layers = m.config.total_layers(),
       .places = std::move(places)},
      num_steps, num_branches);
}

void FluxTransformer::Impl::check_input(const FluxInput& input, TensorView out) const {
  FO_CHECK(buffers.image_tokens > 0, "flux: forward() was called before begin()");
  const auto check = [&](const char* name, ConstTensorView view, Layout wanted) {
    FO_CHECK(view && view.dtype == DType::kF32 && view.device == backend.device() &&
                 view.layout.rank == wanted.rank && view.layout.sizes == wanted.sizes &&
                 view.layout.is_contiguous(),
             "flux: %s is %s %s, expected contiguous f32 %s on the backend's device", name,
             std::string(dtype_name(view.dtype)).c_str(), view.layout.to_string().c_str(),
             wanted.to_string().c_str());
  };
  check("latents", input.latents, {buffers.image_tokens, config.in_channels});
  check("text", input.text, {buffers.text_tokens, config.joint_attention_dim});
  check("pooled", input.pooled, {config.pooled_projection_dim});
  check("out", out, {buffers.image_tokens, config.out_channels});
}

void FluxTransformer::Impl::observe(const char* kind, int index, const char* part,
                                    ConstTensorView value) const {
  if (observer) observer(std::string(kind) + "." + std::to_string(index) + part, value);
}

// Reused layers are told of like those that ran.
void FluxTransformer::Impl::run_layers(Engine& engine) {
  engine.begin_layers(buffers.hidden);
  bool reused = false;
  for (int layer = 0; layer < config.total_layers(); ++layer) {
    const int single = layer - config.num_layers;
    if (!reused && single < 0) {
      flux::run_double_block(engine, layer, weights.double_blocks[layer], buffers);
      observe("double", layer, ".txt", buffers.text(buffers.hidden));
      observe("double", layer, ".img", buffers.image(buffers.hidden));
    } else if (!reused) {
      flux::run_single_block(engine, layer, weights.single_blocks[single], buffers);
      observe("single", single, "", buffers.hidden);
    }
    reused = reused || engine.end_layer(layer, buffers.hidden);
    if (layer_callback) layer_callback(layer);
  }
}

void FluxTransformer::forward(Engine& engine, const FluxInput& input, TensorView out) {
  Impl& m = *impl_;
  m.check_input(input, out);
  Buffers& buffers = m.buffers;
  Backend& backend = m.backend;
  const flux::FluxWeights& weights = m.weights;
  const auto embed = [&](ConstTensorView x, const flux::Linear& linear, TensorView rows) {
    backend.linear(x, linear.weight, linear.bias, Activation::kNone, rows, {});
  };

  flux::embed_condition(backend, weights, m.config, input, buffers);
  if (m.observer) m.observer("temb", buffers.temb);
  embed(input.text, weights.text_embedder, buffers.text(buffers.hidden));
  embed(input.latents, weights.latent_embedder, buffers.image(buffers.hidden));

  m.run_layers(engine);

  const Tensor& modulation = buffers.modulation[0];
  const index_t dim = m.config.hidden_dim();
  flux::modulate(backend, weights.final_modulation, buffers, modulation);
  const ConstTensorView scale = flux::modulation_part(modulation, 0, dim);
  const ConstTensorView shift = flux::modulation_part(modulation, 1, dim);
  backend.norm_modulate(buffers.image(buffers.hidden), shift, scale, flux::kNormEps,
                        buffers.final_normed, {});
  embed(buffers.final_normed, weights.final_projection, out);
}

}  // namespace flashomni
