// FLUX.1-dev's own config and tensors, 24 GB in three shards. The files are sparse: headers are
// real, of every matrix only the first element is written, and the backend keeps no weights.
#include <fcntl.h>
#include <unistd.h>

#include <map>

#include <gtest/gtest.h>

#include "flux_fixture.h"
#include "idle_backend.h"

namespace flashomni {
namespace {

namespace fs = std::filesystem;
using test::Parameter;

// transformer/config.json as published with FLUX.1-dev.
constexpr char kPublishedConfig[] =
    R"({"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
        "_name_or_path": "../checkpoints/flux-dev/transformer", "attention_head_dim": 128,
        "guidance_embeds": true, "in_channels": 64, "joint_attention_dim": 4096,
        "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
        "pooled_projection_dim": 768})";
// metadata.total_size of the published index: 11.9 billion parameters of two bytes.
constexpr index_t kPublishedBytes = 23'802'816'640;

index_t bytes_of(const Parameter& parameter) {
  return parameter.shape.num_elements() * size_in_bytes(DType::kBF16);
}

class File {
 public:
  explicit File(const fs::path& path) : fd_(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)) {}
  ~File() { ::close(fd_); }
  void write(const void* data, std::size_t size, index_t at) {
    EXPECT_EQ(::pwrite(fd_, data, size, at), static_cast<ssize_t>(size));
  }
  void extend(index_t size) { EXPECT_EQ(::ftruncate(fd_, size), 0); }

 private:
  int fd_;
};

// Tensors [begin, end) of `parameters`; the bits of a tensor's first element are its index.
void write_sparse_shard(const fs::path& path, const std::vector<Parameter>& parameters,
                        std::size_t begin, std::size_t end) {
  std::string header;
  index_t data_bytes = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const std::string shape = parameters[i].shape.to_string();
    const index_t bytes = bytes_of(parameters[i]);
    header += (header.empty() ? "{\"" : ", \"") + parameters[i].name +
              R"(": {"dtype": "BF16", "shape": )" + shape + ", \"data_offsets\": [" +
              std::to_string(data_bytes) + ", " + std::to_string(data_bytes + bytes) + "]}";
    data_bytes += bytes;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');  // the data begins aligned
  File file(path);
  const std::uint64_t length = header.size();
  index_t at = sizeof(length) + static_cast<index_t>(length);
  file.write(&length, sizeof(length), 0);
  file.write(header.data(), header.size(), sizeof(length));
  file.extend(at + data_bytes);
  for (std::size_t i = begin; i < end; ++i) {
    const auto mark = static_cast<std::uint16_t>(i);
    file.write(&mark, sizeof(mark), at);
    at += bytes_of(parameters[i]);
  }
}

void write_sparse_model(const fs::path& directory, const std::vector<Parameter>& parameters) {
  std::string map;
  const auto shard_of = [&](std::size_t i) { return i * 3 / parameters.size(); };
  const auto name_of = [](std::size_t shard) {
    return "diffusion_pytorch_model-0000" + std::to_string(shard + 1) + "-of-00003.safetensors";
  };
  for (std::size_t i = 0, begin = 0; i < parameters.size(); ++i) {
    map += (i == 0 ? "\"" : ", \"") + parameters[i].name + "\": \"" + name_of(shard_of(i)) + "\"";
    if (i + 1 < parameters.size() && shard_of(i + 1) == shard_of(i)) continue;
    write_sparse_shard(directory / name_of(shard_of(i)), parameters, begin, i + 1);
    begin = i + 1;
  }
  test::write_text(directory / "diffusion_pytorch_model.safetensors.index.json",
                   "{\"weight_map\": {" + map + "}}");
}

// Notes the mark and the shape of every matrix.
class NotingBackend : public test::IdleBackend {
 public:
  std::map<std::uint16_t, std::string> shape_of_mark;

  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override {
    const std::uint16_t mark = *weight.as<std::uint16_t>();
    EXPECT_TRUE(shape_of_mark.emplace(mark, weight.layout.to_string()).second) << "read twice";
    return IdleBackend::pack_weight(weight, dtype, column_group);
  }
};

TEST(FluxFullSize, TheTwelveBillionParametersOfFluxDevLoad) {
  const test::TemporaryDirectory directory("flux-full");
  test::write_text(directory.path() / "config.json", kPublishedConfig);
  const auto parameters =
      test::flux_parameters(FluxConfig::from_json(directory.path() / "config.json"));
  index_t bytes = 0;
  for (const Parameter& parameter : parameters) bytes += bytes_of(parameter);
  ASSERT_EQ(bytes, kPublishedBytes);
  write_sparse_model(directory.path(), parameters);

  NotingBackend backend;
  const FluxTransformer model = FluxTransformer::load(directory.path(), backend, DType::kBF16);
  EXPECT_EQ(model.config().hidden_dim(), 3072);
  EXPECT_EQ(model.config().total_layers(), 57);
  EXPECT_EQ(model.config().out_channels, 64);

  std::map<std::uint16_t, std::string> expected;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Layout& shape = parameters[i].shape;
    if (shape.rank == 2) expected[static_cast<std::uint16_t>(i)] = shape.to_string();
  }
  EXPECT_EQ(backend.shape_of_mark, expected);
}

}  // namespace
}  // namespace flashomni
