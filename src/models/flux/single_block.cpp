// single_block.cpp -- attention and MLP side by side over the concatenated sequence.
// SPDX-License-Identifier: Apache-2.0
#include "models/flux/blocks.h"
#include "models/flux/modulation.h"

namespace flashomni::flux {

void run_single_block(Engine& engine, int layer, const SingleBlockWeights& weights,
                      const Buffers& buffers) {
  constexpr int kModule = 0;  // proj_out(concat[attention, mlp]), the only one
  Backend& backend = engine.backend();
  const Tensor& modulation = buffers.modulation[0];
  modulate(backend, weights.modulation, buffers, modulation);
  const auto part = [&](int i) { return modulation_part(modulation, i, buffers.hidden.size(1)); };
  const ConstTensorView shift = part(0), scale = part(1), gate = part(2);
  if (engine.is_layer_forecast(layer)) {
    engine.forecast_module(layer, kModule, buffers.branch);
    backend.gated_add(buffers.branch, gate, buffers.hidden, {});
    return;
  }

  backend.norm_modulate(buffers.hidden, shift, scale, kNormEps, buffers.normed, {});
  backend.linear(buffers.normed, weights.mlp_in.weight, weights.mlp_in.bias, Activation::kGeluTanh,
                 buffers.mlp_hidden, {});
  const StreamWeights attention = weights.attention.view();
  const AttentionStream whole{.first_token = 0,
                              .num_tokens = buffers.text_tokens + buffers.image_tokens,
                              .weights = &attention,
                              .x = buffers.normed,
                              .mlp = buffers.mlp_hidden,
                              .out = buffers.branch,
                              .residual = buffers.hidden,
                              .gate = gate};
  engine.attend(layer, {&whole, 1}, buffers.rope());
  if (engine.wants_modules(layer)) engine.record_module(layer, kModule, buffers.branch);
}

}  // namespace flashomni::flux
