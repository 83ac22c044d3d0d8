// Loading: shards, optional parts, and what is said of files that do not fit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/error.h"
#include "flashomni/policy.h"
#include "flux_fixture.h"

namespace flashomni {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;

constexpr char kConfig[] =
    R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 4,
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 6,
        "guidance_embeds": false, "axes_dims_rope": [4, 6, 6]})";

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::vector<float> run_once(const std::filesystem::path& directory) {
  const auto backend = make_backend("reference");
  FluxTransformer model = FluxTransformer::load(directory, *backend, DType::kF32);
  Engine engine(*backend, {}, make_policy("dense", {}));
  model.begin(engine, 3, 2, 5, 1, 1);
  const auto ramp = [](Layout layout) {
    Tensor tensor = Tensor::host(DType::kF32, layout);
    for (index_t i = 0; i < tensor.num_elements(); ++i)
      tensor.as<float>()[i] = 0.1f * (i % 7) - 0.2f;
    return tensor;
  };
  const Tensor latents = ramp({10, 4}), text = ramp({3, 8}), pooled = ramp({6});
  const Tensor out = Tensor::host(DType::kF32, {10, 4});
  engine.begin_step(0, 0);
  model.forward(engine, {.latents = latents, .text = text, .pooled = pooled, .timestep = 0.5f},
                out);
  return {out.as<float>(), out.as<float>() + out.num_elements()};
}

TEST(FluxLoad, ShardsGiveTheSameModelAsOneFile) {
  const TemporaryDirectory one("flux-one"), three("flux-three");
  test::write_formula_model(one.path(), kConfig);
  test::write_formula_model(three.path(), kConfig, 3);
  const std::vector<float> expected = run_once(one.path());
  EXPECT_EQ(run_once(three.path()), expected);
  EXPECT_THAT(expected, testing::Each(testing::Truly([](float x) { return std::isfinite(x); })));
}

TEST(FluxLoad, NamesAMissingTensor) {
  const TemporaryDirectory directory("flux-missing");
  test::write_formula_model(directory.path(), kConfig);
  std::string more = kConfig;
  more.replace(more.find("\"num_layers\": 1"), 15, "\"num_layers\": 2");
  test::write_text(directory.path() / "config.json", more);
  const auto backend = make_backend("reference");
  EXPECT_THAT(error_of([&] { FluxTransformer::load(directory.path(), *backend, DType::kF32); }),
              HasSubstr("transformer_blocks.1."));
}

TEST(FluxLoad, NamesATensorThatTheConfigDoesNotKnow) {
  const TemporaryDirectory directory("flux-extra");
  test::write_formula_model(directory.path(), kConfig);
  std::string fewer = kConfig;
  fewer.replace(fewer.find("\"num_single_layers\": 1"), 22, "\"num_single_layers\": 0");
  test::write_text(directory.path() / "config.json", fewer);
  const auto backend = make_backend("reference");
  EXPECT_THAT(error_of([&] { FluxTransformer::load(directory.path(), *backend, DType::kF32); }),
              HasSubstr("tensor 'single_transformer_blocks.0."));
}

TEST(FluxLoad, NamesATensorOfAnotherShape) {
  const TemporaryDirectory directory("flux-shape");
  test::write_formula_model(directory.path(), kConfig);
  std::string wider = kConfig;
  wider.replace(wider.find("\"joint_attention_dim\": 8"), 24, "\"joint_attention_dim\": 9");
  test::write_text(directory.path() / "config.json", wider);
  const auto backend = make_backend("reference");
  EXPECT_THAT(error_of([&] { FluxTransformer::load(directory.path(), *backend, DType::kF32); }),
              HasSubstr("'context_embedder.weight' is [32, 8], config.json makes it [32, 9]"));
}

struct BadConfig {
  const char* from;
  const char* to;
  const char* message;
};

// Names the case in test names and messages.
void PrintTo(const BadConfig& bad, std::ostream* out) { *out << bad.message; }

class FluxConfigErrors : public testing::TestWithParam<BadConfig> {};

TEST_P(FluxConfigErrors, NameTheFieldAndItsValue) {
  const TemporaryDirectory directory("flux-config");
  std::string json = kConfig;
  json.replace(json.find(GetParam().from), std::string(GetParam().from).size(), GetParam().to);
  test::write_text(directory.path() / "config.json", json);
  EXPECT_THAT(error_of([&] { FluxConfig::from_json(directory.path() / "config.json"); }),
              HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Models, FluxConfigErrors,
    testing::Values(
        BadConfig{"FluxTransformer2DModel", "UNet", "_class_name is 'UNet'"},
        BadConfig{"\"patch_size\": 1", "\"patch_size\": 2", "patch_size is 2, only 1"},
        BadConfig{"\"in_channels\": 4", "\"in_channels\": 0",
                  "in_channels is 0, must be at least 1"},
        BadConfig{"\"in_channels\": 4", "\"in_channels\": \"x\"", "in_channels is \"x\""},
        BadConfig{"[4, 6, 6]", "[4, 6, 8]", "axes_dims_rope sums to 18, attention_head_dim is 16"},
        BadConfig{"[4, 6, 6]", "[5, 5, 6]", "axes_dims_rope is [5,5,6]"},
        BadConfig{"false", "0", "guidance_embeds is 0"}));

TEST(FluxConfig, OfAMissingOrBrokenFileIsAnIoError) {
  const TemporaryDirectory directory("flux-none");
  EXPECT_THAT(error_of([&] { FluxConfig::from_json(directory.path() / "config.json"); }),
              HasSubstr("cannot open"));
  test::write_text(directory.path() / "config.json", "{\"in_channels\": ");
  EXPECT_THAT(error_of([&] { FluxConfig::from_json(directory.path() / "config.json"); }),
              HasSubstr("is not a JSON object"));
}

TEST(FluxForward, ChecksItsInputs) {
  const TemporaryDirectory directory("flux-input");
  test::write_formula_model(directory.path(), kConfig);
  const auto backend = make_backend("reference"), other = make_backend("reference");
  FluxTransformer model = FluxTransformer::load(directory.path(), *backend, DType::kF32);
  Engine engine(*backend, {}, make_policy("dense", {})),
      foreign(*other, {}, make_policy("dense", {}));
  EXPECT_THAT(error_of([&] { model.begin(foreign, 3, 2, 5, 1, 1); }), HasSubstr("another backend"));
  EXPECT_THAT(error_of([&] { model.begin(engine, 0, 2, 5, 1, 1); }), HasSubstr("0 text tokens"));
  const Tensor out = Tensor::host(DType::kF32, {10, 4});
  EXPECT_THAT(error_of([&] { model.forward(engine, {}, out); }), HasSubstr("before begin()"));
  model.begin(engine, 3, 2, 5, 1, 1);
  const Tensor latents = Tensor::host_zeros(DType::kF32, {9, 4});
  EXPECT_THAT(error_of([&] { model.forward(engine, {.latents = latents}, out); }),
              HasSubstr("latents is f32 [9, 4], expected contiguous f32 [10, 4]"));
}

}  // namespace
}  // namespace flashomni
