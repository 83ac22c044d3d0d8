// double_block.cpp -- text and image attend jointly, each with weights of its own.
// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "models/flux/blocks.h"
#include "models/flux/modulation.h"

namespace flashomni::flux {
namespace {

// One of the two streams: its rows of the buffers, and the six parts of its AdaLN vector.
struct Stream {
  const DoubleStreamWeights& weights;
  int first_token;
  TensorView hidden, normed, branch, mlp_hidden;
  ConstTensorView attention_shift, attention_scale, attention_gate;
  ConstTensorView mlp_shift, mlp_scale, mlp_gate;
  int attention_module, mlp_module;  // numbers for whole-layer caching
};

enum StreamIndex { kText, kImage };

Stream make_stream(StreamIndex index, const DoubleStreamWeights& weights, const Buffers& buffers) {
  const auto rows = [&](const Tensor& tensor) {
    return index == kText ? buffers.text(tensor) : buffers.image(tensor);
  };
  const auto part = [&](int i) {
    return modulation_part(buffers.modulation[index], i, buffers.hidden.size(1));
  };
  return {.weights = weights,
          .first_token = index == kText ? 0 : buffers.text_tokens,
          .hidden = rows(buffers.hidden),
          .normed = rows(buffers.normed),
          .branch = rows(buffers.branch),
          .mlp_hidden = rows(buffers.mlp_hidden),
          .attention_shift = part(0),
          .attention_scale = part(1),
          .attention_gate = part(2),
          .mlp_shift = part(3),
          .mlp_scale = part(4),
          .mlp_gate = part(5),
          .attention_module = 2 * index,
          .mlp_module = 2 * index + 1};
}

void forecast(Engine& engine, int layer, const Stream& stream) {
  Backend& backend = engine.backend();
  engine.forecast_module(layer, stream.attention_module, stream.branch);
  backend.gated_add(stream.branch, stream.attention_gate, stream.hidden, {});
  engine.forecast_module(layer, stream.mlp_module, stream.branch);
  backend.gated_add(stream.branch, stream.mlp_gate, stream.hidden, {});
}

void add_mlp(Engine& engine, int layer, const Stream& stream) {
  Backend& backend = engine.backend();
  const Linear &in = stream.weights.mlp_in, &out = stream.weights.mlp_out;
  backend.norm_modulate(stream.hidden, stream.mlp_shift, stream.mlp_scale, kNormEps, stream.normed,
                        {});
  backend.linear(stream.normed, in.weight, in.bias, Activation::kGeluTanh, stream.mlp_hidden, {});
  backend.linear(stream.mlp_hidden, out.weight, out.bias, Activation::kNone, stream.branch, {});
  if (engine.wants_modules(layer)) engine.record_module(layer, stream.mlp_module, stream.branch);
  backend.gated_add(stream.branch, stream.mlp_gate, stream.hidden, {});
}

}  // namespace

void run_double_block(Engine& engine, int layer, const DoubleBlockWeights& weights,
                      const Buffers& buffers) {
  Backend& backend = engine.backend();
  modulate(backend, weights.text.modulation, buffers, buffers.modulation[kText]);
  modulate(backend, weights.image.modulation, buffers, buffers.modulation[kImage]);
  const std::array streams{make_stream(kText, weights.text, buffers),
                           make_stream(kImage, weights.image, buffers)};
  if (engine.is_layer_forecast(layer)) {
    for (const Stream& stream : streams) forecast(engine, layer, stream);
    return;
  }

  std::array<StreamWeights, 2> attention_weights;
  std::array<AttentionStream, 2> joint;
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const Stream& stream = streams[i];
    backend.norm_modulate(stream.hidden, stream.attention_shift, stream.attention_scale, kNormEps,
                          stream.normed, {});
    attention_weights[i] = stream.weights.attention.view();
    joint[i] = {.first_token = stream.first_token,
                .num_tokens = static_cast<int>(stream.hidden.size(0)),
                .weights = &attention_weights[i],
                .x = stream.normed,
                .mlp = {},
                .out = stream.branch,
                .residual = stream.hidden,
                .gate = stream.attention_gate};
  }
  engine.attend(layer, joint, buffers.rope());
  for (const Stream& stream : streams) {
    if (engine.wants_modules(layer)) {
      engine.record_module(layer, stream.attention_module, stream.branch);
    }
    add_mlp(engine, layer, stream);
  }
}

}  // namespace flashomni::flux
