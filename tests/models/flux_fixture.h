// flux_fixture.h -- small FLUX models on disk, with the weights of the golden files.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/half.h"
#include "flashomni/flux.h"
#include "flashomni/safetensors.h"

namespace flashomni::test {

inline std::uint32_t crc32(std::string_view text) {
  std::uint32_t crc = ~0u;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

// The integer-hash weights described in the golden files' metadata, in bf16.
inline Tensor formula_weight(const std::string& name, const Layout& shape) {
  Tensor tensor = Tensor::host(DType::kBF16, shape);
  const std::uint32_t seed = crc32(name);
  const bool is_norm = name.find("norm") != std::string::npos && name.ends_with(".weight");
  for (index_t i = 0; i < tensor.num_elements(); ++i) {
    std::uint32_t x = static_cast<std::uint32_t>(i) + seed;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    const float u = static_cast<float>(x >> 8) / 8388608.0f - 1.0f;
    const float matrix_scale =
        shape.rank == 2 ? std::sqrt(3.0f / static_cast<float>(shape.sizes[1])) : 0.0f;
    const float value = shape.rank == 2 ? u * matrix_scale : is_norm ? 1 + 0.1f * u : 0.1f * u;
    tensor.as<BFloat16>()[i] = to_bfloat16(value);
  }
  return tensor;
}

struct Parameter {
  std::string name;
  Layout shape;
};

// Every parameter of diffusers' FluxTransformer2DModel.
inline std::vector<Parameter> flux_parameters(const FluxConfig& config) {
  std::vector<Parameter> all;
  const index_t d = config.hidden_dim();
  const auto linear = [&](const std::string& name, index_t out, index_t in) {
    all.push_back({name + ".weight", {out, in}});
    all.push_back({name + ".bias", {out}});
  };
  linear("x_embedder", d, config.in_channels);
  linear("context_embedder", d, config.joint_attention_dim);
  const auto embedder = [&](const std::string& name, index_t in) {
    linear("time_text_embed." + name + ".linear_1", d, in);
    linear("time_text_embed." + name + ".linear_2", d, d);
  };
  embedder("timestep_embedder", 256);
  embedder("text_embedder", config.pooled_projection_dim);
  if (config.guidance_embeds) embedder("guidance_embedder", 256);
  const auto norms = [&](const std::string& block, std::initializer_list<const char*> names) {
    for (const char* name : names) {
      all.push_back({block + "attn." + name + ".weight", {config.head_dim}});
    }
  };
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string block = "transformer_blocks." + std::to_string(i) + ".";
    for (const char* name : {"to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj",
                             "to_out.0", "to_add_out"}) {
      linear(block + "attn." + name, d, d);
    }
    norms(block, {"norm_q", "norm_k", "norm_added_q", "norm_added_k"});
    for (const char* name : {"norm1", "norm1_context"}) linear(block + name + ".linear", 6 * d, d);
    for (const char* name : {"ff", "ff_context"}) {
      linear(block + name + ".net.0.proj", 4 * d, d);
      linear(block + name + ".net.2", d, 4 * d);
    }
  }
  for (int i = 0; i < config.num_single_layers; ++i) {
    const std::string block = "single_transformer_blocks." + std::to_string(i) + ".";
    for (const char* name : {"to_q", "to_k", "to_v"}) linear(block + "attn." + name, d, d);
    norms(block, {"norm_q", "norm_k"});
    linear(block + "norm.linear", 3 * d, d);
    linear(block + "proj_mlp", 4 * d, d);
    linear(block + "proj_out", d, 5 * d);
  }
  linear("norm_out.linear", 2 * d, d);
  linear("proj_out", config.out_channels, d);
  return all;
}

// A directory under the system's temporary one, removed at the end of the test.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              (name + "-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)))) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path) << text;
}

// config.json and formula weights. `shards` > 1 spreads the weights over an index's shards.
inline void write_formula_model(const std::filesystem::path& directory, const std::string& json,
                                int shards = 1) {
  write_text(directory / "config.json", json);
  const FluxConfig config = FluxConfig::from_json(directory / "config.json");
  std::vector<Tensor> storage;
  std::vector<std::vector<NamedTensor>> files(shards);
  std::string map;
  for (const Parameter& parameter : flux_parameters(config)) {
    storage.push_back(formula_weight(parameter.name, parameter.shape));
    const std::size_t shard = storage.size() % shards;
    files[shard].push_back({parameter.name, storage.back()});
    map += (map.empty() ? "\"" : ", \"") + parameter.name + "\": \"part-" + std::to_string(shard) +
           ".safetensors\"";
  }
  if (shards == 1) {
    write_safetensors(directory / "diffusion_pytorch_model.safetensors", files[0]);
    return;
  }
  for (int shard = 0; shard < shards; ++shard) {
    write_safetensors(directory / ("part-" + std::to_string(shard) + ".safetensors"), files[shard]);
  }
  write_text(directory / "diffusion_pytorch_model.safetensors.index.json",
             "{\"metadata\": {}, \"weight_map\": {" + map + "}}");
}

}  // namespace flashomni::test
