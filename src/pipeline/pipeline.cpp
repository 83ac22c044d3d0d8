// pipeline.cpp -- loading of a model directory.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/pipeline.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "core/check.h"
#include "pipeline/json_file.h"
#include "pipeline/pipeline_impl.h"

namespace flashomni {
namespace {

// Before anything else is opened, so that a wrong path is told as such.
const std::filesystem::path& checked(const std::filesystem::path& directory) {
  if (!std::filesystem::is_directory(directory)) {
    FO_FAIL(kIo, "pipeline: there is no model directory %s", directory.c_str());
  }
  const auto path = directory / "model_index.json";
  const auto name = json_value<std::string>(path, read_json_file(path), "_class_name");
  if (name != "FluxMiniPipeline") {
    FO_FAIL(kUnsupported, "pipeline: %s names the class %s, supported is FluxMiniPipeline",
            path.c_str(), name.c_str());
  }
  return directory;
}

}  // namespace

Pipeline::Impl::Impl(const std::filesystem::path& directory, std::unique_ptr<Backend> wrapped,
                     DType dtype)
    : directory(directory),
      dtype(dtype),
      backend(std::move(wrapped)),
      host_backend(backend.device().type == DeviceType::kCpu ? nullptr : make_backend("cpu")),
      tokenizer(WordTokenizer::load(checked(directory) / "tokenizer")),
      scheduler(FlowMatchScheduler::load(directory / "scheduler")),
      text_encoder(
          TextEncoder::load(directory / "text_encoder", host_backend ? *host_backend : backend)),
      transformer(FluxTransformer::load(directory / "transformer", backend, dtype)) {
  read_index(directory / "model_index.json");
  check_parts(directory);
}

TextEmbedding Pipeline::Impl::encode(std::span<const int> ids) {
  TextEmbedding text = text_encoder.encode(ids);
  if (!host_backend) return text;
  for (Tensor* tensor : {&text.tokens, &text.pooled}) {
    Tensor on_device = backend.allocate(tensor->dtype(), tensor->view().layout);
    backend.copy(*tensor, on_device, {});
    backend.synchronize({});  // the host's copy dies here
    *tensor = std::move(on_device);
  }
  return text;
}

void Pipeline::Impl::read_index(const std::filesystem::path& path) {
  const nlohmann::json index = read_json_file(path);
  const auto space = json_value<nlohmann::json>(path, index, "pixel_space");
  patch = json_value<int>(path, space, "patch");
  const auto values = json_value<nlohmann::json>(path, index, "defaults");
  defaults.width = json_value(path, values, "width", defaults.width);
  defaults.height = json_value(path, values, "height", defaults.height);
  defaults.steps = json_value(path, values, "num_inference_steps", defaults.steps);
  defaults.cfg = json_value(path, values, "true_cfg_scale", defaults.cfg);
  defaults.guidance = json_value(path, values, "guidance_embedding", defaults.guidance);
  negative_ids = tokenizer.pad(json_value<std::vector<int>>(path, values, "negative_prompt_ids"));
}

void Pipeline::Impl::check_parts(const std::filesystem::path& directory) const {
  const FluxConfig& config = transformer.config();
  const int channels = 3 * patch * patch;
  FO_CHECK(patch >= 1 && config.in_channels == channels && config.out_channels == channels,
           "pipeline: %s: the transformer has %d channels in and %d out, a patch of %d pixels "
           "needs %d",
           directory.c_str(), config.in_channels, config.out_channels, patch, channels);
  FO_CHECK(text_encoder.hidden_dim() == config.joint_attention_dim &&
               text_encoder.hidden_dim() == config.pooled_projection_dim,
           "pipeline: %s: the text encoder is %d wide, the transformer takes %d and %d pooled",
           directory.c_str(), text_encoder.hidden_dim(), config.joint_attention_dim,
           config.pooled_projection_dim);
  FO_CHECK(text_encoder.text_tokens() == tokenizer.max_length(),
           "pipeline: %s: the text encoder takes %d tokens, the tokenizer makes %d",
           directory.c_str(), text_encoder.text_tokens(), tokenizer.max_length());
}

// FNV-1a over 4 KiB of every MiB: tells models and their versions apart in a moment.
std::string Pipeline::Impl::model() const {
  constexpr std::streamoff kSample = 4096, kStride = 1 << 20;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory / "transformer")) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  std::uint64_t hash = 14695981039346656037u;
  for (const std::filesystem::path& path : files) {
    std::ifstream file(path, std::ios::binary);
    std::array<char, kSample> bytes;
    for (std::streamoff at = 0; file.seekg(at); at += kStride) {
      file.read(bytes.data(), kSample);
      for (std::streamsize i = 0; i < file.gcount(); ++i) {
        hash = (hash ^ static_cast<unsigned char>(bytes[i])) * 1099511628211u;
      }
    }
  }
  const std::filesystem::path name =
      directory.has_filename() ? directory : directory.parent_path();  // not of "flux-mini/"
  return format("%s %016llx", name.filename().c_str(), static_cast<unsigned long long>(hash));
}

Pipeline Pipeline::load(const std::filesystem::path& directory, std::unique_ptr<Backend> backend,
                        DType dtype) {
  FO_CHECK(backend != nullptr, "pipeline: backend is missing; make_backend(\"auto\") picks one");
  FO_CHECK(dtype == DType::kF32 || dtype == DType::kBF16,
           "pipeline: dtype is %s, must be f32 or bf16", dtype_name(dtype).data());
  return Pipeline(std::make_unique<Impl>(directory, std::move(backend), dtype));
}

Pipeline::Pipeline(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Pipeline::~Pipeline() = default;
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;

const PipelineDefaults& Pipeline::defaults() const { return impl_->defaults; }
const FluxConfig& Pipeline::config() const { return impl_->transformer.config(); }
Backend& Pipeline::backend() const { return impl_->backend; }
DType Pipeline::dtype() const { return impl_->dtype; }
std::string Pipeline::model() const { return impl_->model(); }

}  // namespace flashomni
