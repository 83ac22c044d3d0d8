// text_encoder.h -- FluxMini's text encoder: a small pre-LN transformer over word tokens.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/plan.h"

namespace flashomni {

// What the transformer is conditioned on, on the backend's device.
struct TextEmbedding {
  Tensor tokens;  // [text_tokens, hidden_dim] f32
  Tensor pooled;  // [hidden_dim] f32, the mean over the tokens that are no padding
};

// Always f32: it runs twice per picture and costs a thousandth of it.
class TextEncoder {
 public:
  // `directory` holds config.json and model.safetensors. `backend` outlives the encoder.
  static TextEncoder load(const std::filesystem::path& directory, Backend& backend);

  int hidden_dim() const { return hidden_dim_; }
  int text_tokens() const { return text_tokens_; }
  // `ids` has text_tokens() entries. Padding is attended to, as in FLUX.
  TextEmbedding encode(std::span<const int> ids) const;

 private:
  struct Linear {
    PackedWeight weight;
    Tensor bias;
  };
  struct Norm {  // as norm_modulate takes it: weight - 1 and bias
    Tensor scale, shift;
  };
  struct Layer {
    Norm norm1, norm2;
    Linear qkv, out, up, down;
  };
  class Loader;

  explicit TextEncoder(Backend& backend) : backend_(&backend) {}
  Tensor embed(std::span<const int> ids) const;
  void attend(const Layer& layer, TensorView x, TensorView normed) const;
  void feed_forward(const Layer& layer, TensorView x, TensorView normed) const;

  Backend* backend_;
  int hidden_dim_ = 0, text_tokens_ = 0, num_heads_ = 0, vocabulary_ = 0, pad_ = 0;
  float eps_ = 1e-5f;
  Tensor token_embedding_, position_embedding_;  // host f32
  std::vector<Layer> layers_;
  Norm final_norm_;
  AttentionPlan plan_;  // all live
};

}  // namespace flashomni
