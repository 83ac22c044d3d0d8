// weights.h -- the parameters of FluxTransformer2DModel, packed for a backend.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/engine.h"
#include "flashomni/flux.h"

namespace flashomni::flux {

struct Linear {
  PackedWeight weight;
  Tensor bias;  // [out_features] f32, or none
};

// linear_2(silu(linear_1(x))), the embedders of time, guidance and pooled text.
struct EmbedderWeights {
  Linear linear_1, linear_2;
};

// Projections of one stream into joint attention and out of it.
struct AttentionWeights {
  Linear q, k, v, out;
  Tensor q_norm, k_norm;  // [head_dim] f32

  StreamWeights view() const;
};

// One stream of a double block: AdaLN, attention, MLP.
struct DoubleStreamWeights {
  Linear modulation;  // to shift, scale, gate of attention, then of the MLP
  AttentionWeights attention;
  Linear mlp_in, mlp_out;
};

struct DoubleBlockWeights {
  DoubleStreamWeights text, image;
};

struct SingleBlockWeights {
  Linear modulation;           // to shift, scale, gate
  AttentionWeights attention;  // `out` is proj_out over concat[attention, mlp]
  Linear mlp_in;
};

// The embedders at both ends stay in f32, blocks are packed in the compute dtype.
struct FluxWeights {
  Linear latent_embedder, text_embedder;
  EmbedderWeights time, pooled, guidance;  // `guidance` is empty without guidance_embeds
  std::vector<DoubleBlockWeights> double_blocks;
  std::vector<SingleBlockWeights> single_blocks;
  Linear final_modulation, final_projection;
};

// Reads diffusion_pytorch_model.safetensors, or the shards of its index, in `directory`.
// Throws kIo naming a missing tensor, a wrong shape, or a tensor that the model does not have.
FluxWeights load_weights(const std::filesystem::path& directory, const FluxConfig& config,
                         Backend& backend, DType dtype);

}  // namespace flashomni::flux
