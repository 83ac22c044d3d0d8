#include "models/flux/modulation.h"

#include <cmath>

#include "core/half.h"

namespace flashomni::flux {
namespace {

// [cos, sin] of 1000 * value at 128 frequencies, in f32 as diffusers' Timesteps computes it: at
// angles up to 1000 the rounding of the angle is visible.
void fill_sinusoid(float value, TensorView out) {
  const int half = static_cast<int>(out.size(1)) / 2;
  const float scaled = value * 1000.0f;
  const auto log_max_period = static_cast<float>(-std::log(10000.0));
  for (int i = 0; i < half; ++i) {
    const float frequency =
        std::exp(log_max_period * static_cast<float>(i) / static_cast<float>(half));
    out.as<float>()[i] = std::cos(scaled * frequency);
    out.as<float>()[half + i] = std::sin(scaled * frequency);
  }
}

// temb_part <- linear_2(silu(linear_1(x))).
void embed(Backend& backend, const EmbedderWeights& weights, ConstTensorView x, Buffers& buffers) {
  backend.linear(x, weights.linear_1.weight, weights.linear_1.bias, Activation::kSilu,
                 buffers.temb_inner, {});
  backend.linear(buffers.temb_inner, weights.linear_2.weight, weights.linear_2.bias,
                 Activation::kNone, buffers.temb_part, {});
}

void embed_sinusoid(Backend& backend, const EmbedderWeights& weights, float value,
                    Buffers& buffers) {
  fill_sinusoid(value, buffers.host_sinusoid);
  backend.copy(buffers.host_sinusoid, buffers.sinusoid, {});
  embed(backend, weights, buffers.sinusoid, buffers);
  // The host copy is filled again by the next embedder.
  backend.synchronize({});
}

}  // namespace

void embed_condition(Backend& backend, const FluxWeights& weights, const FluxConfig& config,
                     const FluxInput& input, Buffers& buffers) {
  embed_sinusoid(backend, weights.time, input.timestep, buffers);
  backend.copy(buffers.temb_part, buffers.temb, {});
  if (config.guidance_embeds) {
    embed_sinusoid(backend, weights.guidance, input.guidance, buffers);
    backend.gated_add(buffers.temb_part, {}, buffers.temb, {});
  }
  embed(backend, weights.pooled, input.pooled.reshape({1, config.pooled_projection_dim}), buffers);
  backend.gated_add(buffers.temb_part, {}, buffers.temb, {});

  // One vector a forward pass: silu on the host is not worth an operation of the backend.
  backend.copy(buffers.temb, buffers.host_temb, {});
  backend.synchronize({});
  for (index_t i = 0; i < config.hidden_dim(); ++i) {
    const float x = buffers.host_temb.as<float>()[i];
    store_float(buffers.host_condition, i, x / (1.0f + std::exp(-x)));
  }
  backend.copy(buffers.host_condition, buffers.condition, {});
}

ConstTensorView modulation_part(const Tensor& modulation, int index, index_t hidden_dim) {
  return modulation.view()
      .slice(1, index * hidden_dim, (index + 1) * hidden_dim)
      .reshape({hidden_dim});
}

void modulate(Backend& backend, const Linear& linear, const Buffers& buffers,
              const Tensor& modulation) {
  backend.linear(buffers.condition, linear.weight, linear.bias, Activation::kNone,
                 modulation.view().slice(1, 0, linear.weight.out_features), {});
}

}  // namespace flashomni::flux
