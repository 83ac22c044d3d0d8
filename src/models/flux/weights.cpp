#include "models/flux/weights.h"

#include <set>
#include <string>

#include "core/check.h"
#include "core/half.h"
#include "flashomni/safetensors.h"

namespace flashomni::flux {
namespace {

constexpr int kSinusoidDim = 256;  // width of the time and guidance sinusoids

SafetensorsFile open_weights(const std::filesystem::path& directory) {
  const std::filesystem::path single = directory / "diffusion_pytorch_model.safetensors";
  const std::filesystem::path index = directory / "diffusion_pytorch_model.safetensors.index.json";
  return SafetensorsFile(std::filesystem::exists(index) ? index : single);
}

// Takes tensors out of the file by name and keeps account of which were taken.
class Reader {
 public:
  Reader(const std::filesystem::path& directory, Backend& backend)
      : path_(directory), file_(open_weights(directory)), backend_(backend) {}

  Linear linear(const std::string& name, index_t out, index_t in, DType dtype, int group = 0) {
    return {backend_.pack_weight(take(name + ".weight", {out, in}), dtype, group),
            vector(name + ".bias", out)};
  }

  // As f32 on the backend's device.
  Tensor vector(const std::string& name, index_t size) {
    const ConstTensorView stored = take(name, {size});
    const Tensor host = Tensor::host(DType::kF32, {size});
    for (index_t i = 0; i < size; ++i) host.as<float>()[i] = load_float(stored, i);
    Tensor device = backend_.allocate(DType::kF32, {size});
    backend_.copy(host, device, {});
    backend_.synchronize({});
    return device;
  }

  void check_all_taken() const {
    for (const std::string& name : file_.names()) {
      if (!taken_.contains(name)) {
        FO_FAIL(kIo, "flux: %s: tensor '%s' belongs to no part of the model that config.json names",
                path_.c_str(), name.c_str());
      }
    }
  }

 private:
  ConstTensorView take(const std::string& name, Layout shape) {
    const ConstTensorView view = file_.tensor(name);
    if (view.layout.rank != shape.rank || view.layout.sizes != shape.sizes) {
      FO_FAIL(kIo, "flux: %s: tensor '%s' is %s, config.json makes it %s", path_.c_str(),
              name.c_str(), view.layout.to_string().c_str(), shape.to_string().c_str());
    }
    if (!is_float(view.dtype)) {
      FO_FAIL(kIo, "flux: %s: tensor '%s' is %s, expected f32, bf16 or f16", path_.c_str(),
              name.c_str(), std::string(dtype_name(view.dtype)).c_str());
    }
    taken_.insert(name);
    return view;
  }

  std::filesystem::path path_;
  SafetensorsFile file_;
  Backend& backend_;
  std::set<std::string> taken_;
};

// Reads blocks of one model; the names are those of diffusers.
class BlockReader {
 public:
  BlockReader(Reader& reader, const FluxConfig& config, DType dtype)
      : reader_(reader),
        dim_(config.hidden_dim()),
        mlp_dim_(4 * dim_),
        head_dim_(config.head_dim),
        dtype_(dtype) {}

  DoubleBlockWeights double_block(int index) {
    const std::string block = "transformer_blocks." + std::to_string(index) + ".";
    DoubleBlockWeights weights;
    weights.image = stream(block, "norm1", "ff");
    weights.image.attention =
        attention(block + "attn.", {"to_q", "to_k", "to_v", "norm_q", "norm_k"});
    weights.image.attention.out = reader_.linear(block + "attn.to_out.0", dim_, dim_, dtype_);
    weights.text = stream(block, "norm1_context", "ff_context");
    weights.text.attention = attention(block + "attn.", {"add_q_proj", "add_k_proj", "add_v_proj",
                                                         "norm_added_q", "norm_added_k"});
    weights.text.attention.out = reader_.linear(block + "attn.to_add_out", dim_, dim_, dtype_);
    return weights;
  }

  SingleBlockWeights single_block(int index) {
    const std::string block = "single_transformer_blocks." + std::to_string(index) + ".";
    SingleBlockWeights weights;
    weights.modulation = reader_.linear(block + "norm.linear", 3 * dim_, dim_, dtype_);
    weights.attention = attention(block + "attn.", {"to_q", "to_k", "to_v", "norm_q", "norm_k"});
    weights.attention.out = reader_.linear(block + "proj_out", dim_, dim_ + mlp_dim_, dtype_);
    weights.mlp_in = reader_.linear(block + "proj_mlp", mlp_dim_, dim_, dtype_);
    return weights;
  }

 private:
  struct AttentionNames {
    const char *q, *k, *v, *q_norm, *k_norm;
  };

  DoubleStreamWeights stream(const std::string& block, const char* norm, const char* mlp) {
    DoubleStreamWeights weights;
    weights.modulation = reader_.linear(block + norm + ".linear", 6 * dim_, dim_, dtype_);
    weights.mlp_in = reader_.linear(block + mlp + ".net.0.proj", mlp_dim_, dim_, dtype_);
    weights.mlp_out = reader_.linear(block + mlp + ".net.2", dim_, mlp_dim_, dtype_);
    return weights;
  }

  AttentionWeights attention(const std::string& prefix, const AttentionNames& names) {
    AttentionWeights weights;
    weights.q = reader_.linear(prefix + names.q, dim_, dim_, dtype_, head_dim_);
    weights.k = reader_.linear(prefix + names.k, dim_, dim_, dtype_, head_dim_);
    weights.v = reader_.linear(prefix + names.v, dim_, dim_, dtype_, head_dim_);
    weights.q_norm = reader_.vector(prefix + names.q_norm + ".weight", head_dim_);
    weights.k_norm = reader_.vector(prefix + names.k_norm + ".weight", head_dim_);
    return weights;
  }

  Reader& reader_;
  index_t dim_, mlp_dim_;
  int head_dim_;
  DType dtype_;
};

EmbedderWeights load_embedder(Reader& reader, const std::string& name, index_t in, index_t dim) {
  return {reader.linear("time_text_embed." + name + ".linear_1", dim, in, DType::kF32),
          reader.linear("time_text_embed." + name + ".linear_2", dim, dim, DType::kF32)};
}

}  // namespace

StreamWeights AttentionWeights::view() const {
  return {.q = &q.weight,
          .k = &k.weight,
          .v = &v.weight,
          .out = &out.weight,
          .q_bias = q.bias,
          .k_bias = k.bias,
          .v_bias = v.bias,
          .out_bias = out.bias,
          .q_norm = q_norm,
          .k_norm = k_norm};
}

FluxWeights load_weights(const std::filesystem::path& directory, const FluxConfig& config,
                         Backend& backend, DType dtype) {
  Reader reader(directory, backend);
  const index_t dim = config.hidden_dim();
  FluxWeights weights;
  weights.latent_embedder = reader.linear("x_embedder", dim, config.in_channels, DType::kF32);
  weights.text_embedder =
      reader.linear("context_embedder", dim, config.joint_attention_dim, DType::kF32);
  weights.time = load_embedder(reader, "timestep_embedder", kSinusoidDim, dim);
  weights.pooled = load_embedder(reader, "text_embedder", config.pooled_projection_dim, dim);
  if (config.guidance_embeds) {
    weights.guidance = load_embedder(reader, "guidance_embedder", kSinusoidDim, dim);
  }
  BlockReader blocks(reader, config, dtype);
  for (int i = 0; i < config.num_layers; ++i) {
    weights.double_blocks.push_back(blocks.double_block(i));
  }
  for (int i = 0; i < config.num_single_layers; ++i) {
    weights.single_blocks.push_back(blocks.single_block(i));
  }
  weights.final_modulation = reader.linear("norm_out.linear", 2 * dim, dim, dtype);
  weights.final_projection = reader.linear("proj_out", config.out_channels, dim, DType::kF32);
  reader.check_all_taken();
  return weights;
}

}  // namespace flashomni::flux
