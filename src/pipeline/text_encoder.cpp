// text_encoder.cpp -- loading and the forward pass of the text encoder.
// SPDX-License-Identifier: Apache-2.0
#include "pipeline/text_encoder.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "flashomni/safetensors.h"

#include "core/check.h"
#include "core/half.h"
#include "pipeline/json_file.h"

namespace flashomni {
namespace {

Tensor to_device(Backend& backend, Tensor host) {
  Tensor device = backend.allocate(host.dtype(), host.view().layout);
  backend.copy(host, device, {});
  backend.synchronize({});  // `host` dies here
  return device;
}

}  // namespace

// Reads tensors of known shapes from the encoder's file.
class TextEncoder::Loader {
 public:
  Loader(const std::filesystem::path& path, Backend& backend)
      : path_(path), file_(path), backend_(backend) {}

  ConstTensorView tensor(const std::string& name, const Layout& layout) const {
    const ConstTensorView view = file_.tensor(name);
    FO_CHECK(is_float(view.dtype) && view.layout.sizes == layout.sizes &&
                 view.layout.rank == layout.rank,
             "pipeline: %s: %s is %s %s, must be %s of floats", path_.c_str(), name.c_str(),
             dtype_name(view.dtype).data(), view.layout.to_string().c_str(),
             layout.to_string().c_str());
    return view;
  }
  // As f32 in host memory, `offset` added to every value.
  Tensor host_f32(const std::string& name, const Layout& layout, float offset = 0) const {
    const ConstTensorView view = tensor(name, layout);
    Tensor copy = Tensor::host(DType::kF32, layout);
    for (index_t i = 0; i < copy.num_elements(); ++i) {
      copy.as<float>()[i] = load_float(view, i) + offset;
    }
    return copy;
  }
  Linear linear(const std::string& name, int out_features, int in_features) const {
    return {
        backend_.pack_weight(tensor(name + ".weight", {out_features, in_features}), DType::kF32, 0),
        to_device(backend_, host_f32(name + ".bias", {out_features}))};
  }
  Norm norm(const std::string& name, int dim) const {
    return {to_device(backend_, host_f32(name + ".weight", {dim}, -1)),
            to_device(backend_, host_f32(name + ".bias", {dim}))};
  }

 private:
  std::filesystem::path path_;
  SafetensorsFile file_;
  Backend& backend_;
};

TextEncoder TextEncoder::load(const std::filesystem::path& directory, Backend& backend) {
  const auto path = directory / "config.json";
  const nlohmann::json config = read_json_file(path);
  const auto name = json_value<std::string>(path, config, "_class_name");
  if (name != "FluxMiniTextEncoder") {
    FO_FAIL(kUnsupported, "pipeline: text encoder %s, supported is FluxMiniTextEncoder",
            name.c_str());
  }
  TextEncoder encoder(backend);
  const int dim = encoder.hidden_dim_ = json_value<int>(path, config, "hidden_size");
  encoder.vocabulary_ = json_value<int>(path, config, "vocab_size");
  encoder.text_tokens_ = json_value<int>(path, config, "max_position_embeddings");
  encoder.num_heads_ = json_value<int>(path, config, "num_attention_heads");
  encoder.pad_ = json_value<int>(path, config, "pad_token_id");
  encoder.eps_ = json_value<float>(path, config, "layer_norm_eps");
  const int num_layers = json_value<int>(path, config, "num_hidden_layers");
  const int mlp_dim = json_value<int>(path, config, "intermediate_size");
  FO_CHECK(dim >= 1 && encoder.num_heads_ >= 1 && dim % encoder.num_heads_ == 0 &&
               encoder.text_tokens_ >= 1 && encoder.vocabulary_ >= 1 && mlp_dim >= 1,
           "pipeline: %s: sizes must be 1 or more, hidden_size a multiple of num_attention_heads",
           path.c_str());

  const Loader loader(directory / "model.safetensors", backend);
  encoder.token_embedding_ = loader.host_f32("token_embedding.weight", {encoder.vocabulary_, dim});
  encoder.position_embedding_ =
      loader.host_f32("position_embedding.weight", {encoder.text_tokens_, dim});
  for (int i = 0; i < num_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    encoder.layers_.push_back({loader.norm(prefix + "n1", dim), loader.norm(prefix + "n2", dim),
                               loader.linear(prefix + "qkv", 3 * dim, dim),
                               loader.linear(prefix + "out", dim, dim),
                               loader.linear(prefix + "ff.net.0.proj", mlp_dim, dim),
                               loader.linear(prefix + "ff.net.2", dim, mlp_dim)});
  }
  encoder.final_norm_ = loader.norm("final_norm", dim);

  const std::vector<Segment> tokens{{SegmentKind::kText, encoder.text_tokens_}};
  const BlockGrid grid(encoder.text_tokens_, 1, tokens);
  backend.build_attention_plan(SparseSymbols(grid, grid, encoder.num_heads_), encoder.plan_, {});
  return encoder;
}

Tensor TextEncoder::embed(std::span<const int> ids) const {
  Tensor x = Tensor::host(DType::kF32, {text_tokens_, hidden_dim_});
  for (int t = 0; t < text_tokens_; ++t) {
    FO_CHECK(ids[t] >= 0 && ids[t] < vocabulary_,
             "pipeline: token id %d, the text encoder has %d of them", ids[t], vocabulary_);
    const float* word = token_embedding_.as<float>() + index_t{ids[t]} * hidden_dim_;
    const float* place = position_embedding_.as<float>() + index_t{t} * hidden_dim_;
    float* row = x.as<float>() + index_t{t} * hidden_dim_;
    for (int i = 0; i < hidden_dim_; ++i) row[i] = word[i] + place[i];
  }
  return to_device(*backend_, std::move(x));
}

// x += out(attention(norm1(x)))
void TextEncoder::attend(const Layer& layer, TensorView x, TensorView normed) const {
  const int head_dim = hidden_dim_ / num_heads_;
  const Tensor qkv = backend_->allocate(DType::kF32, {text_tokens_, 3 * hidden_dim_});
  const Tensor mixed = backend_->allocate(DType::kF32, {text_tokens_, hidden_dim_});
  backend_->norm_modulate(x, layer.norm1.shift, layer.norm1.scale, eps_, normed, {});
  backend_->linear(normed, layer.qkv.weight, layer.qkv.bias, Activation::kNone, qkv, {});
  TensorView parts[3];
  for (int i = 0; i < 3; ++i) {  // [1, tokens, heads, head_dim] views into the fused rows
    Layout layout{1, text_tokens_, num_heads_, head_dim};
    layout.strides = {index_t{3} * hidden_dim_ * text_tokens_, index_t{3} * hidden_dim_, head_dim,
                      1};
    parts[i] = {qkv.as<float>() + index_t{i} * hidden_dim_, DType::kF32, layout, qkv.view().device};
  }
  const TensorView heads = mixed.view().reshape({1, text_tokens_, num_heads_, head_dim});
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  backend_->attention(plan_, parts[0], parts[1], parts[2], scale, heads, {}, {});
  backend_->linear(mixed, layer.out.weight, layer.out.bias, Activation::kNone, normed, {});
  backend_->gated_add(normed, {}, x, {});
  backend_->synchronize({});  // the buffers die here
}

// x += down(gelu(up(norm2(x))))
void TextEncoder::feed_forward(const Layer& layer, TensorView x, TensorView normed) const {
  const Tensor wide = backend_->allocate(DType::kF32, {text_tokens_, layer.up.weight.out_features});
  backend_->norm_modulate(x, layer.norm2.shift, layer.norm2.scale, eps_, normed, {});
  backend_->linear(normed, layer.up.weight, layer.up.bias, Activation::kGeluTanh, wide, {});
  backend_->linear(wide, layer.down.weight, layer.down.bias, Activation::kNone, normed, {});
  backend_->gated_add(normed, {}, x, {});
  backend_->synchronize({});  // the buffers die here
}

TextEmbedding TextEncoder::encode(std::span<const int> ids) const {
  FO_CHECK(ids.size() == static_cast<std::size_t>(text_tokens_),
           "pipeline: %zu token ids, the text encoder takes %d", ids.size(), text_tokens_);
  const Tensor x = embed(ids);
  TextEmbedding result;
  result.tokens = backend_->allocate(DType::kF32, x.view().layout);
  for (const Layer& layer : layers_) {
    attend(layer, x, result.tokens);
    feed_forward(layer, x, result.tokens);
  }
  backend_->norm_modulate(x, final_norm_.shift, final_norm_.scale, eps_, result.tokens, {});

  Tensor host = Tensor::host(DType::kF32, x.view().layout);
  backend_->copy(result.tokens, host, {});
  backend_->synchronize({});
  Tensor pooled = Tensor::host_zeros(DType::kF32, {hidden_dim_});
  int count = 0;
  for (int t = 0; t < text_tokens_; ++t) {
    if (ids[t] == pad_) continue;
    ++count;
    const float* row = host.as<float>() + index_t{t} * hidden_dim_;
    for (int i = 0; i < hidden_dim_; ++i) pooled.as<float>()[i] += row[i];
  }
  for (int i = 0; i < hidden_dim_; ++i)
    pooled.as<float>()[i] /= static_cast<float>(std::max(count, 1));
  result.pooled = to_device(*backend_, std::move(pooled));
  return result;
}

}  // namespace flashomni
