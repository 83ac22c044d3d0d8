// The transformer against tensors made by diffusers itself (tests/data/golden): two tiny models
// with every block's output.
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "flashomni/policy.h"
#include "flux_fixture.h"
#include "models/flux/rope.h"

namespace flashomni {
namespace {

using test::TemporaryDirectory;
namespace fs = std::filesystem;

// Of f32 against diffusers in f32: BLAS and summation order differ. An independent PyTorch model
// differs from the same files by 2.6e-5 (outputs have an rms of 1.2).
constexpr float kTolerance = 1e-4f;
constexpr int kTextTokens = 8, kGridHeight = 6, kGridWidth = 10;

float max_abs_diff(ConstTensorView a, ConstTensorView b) {
  EXPECT_EQ(a.layout.num_elements(), b.layout.num_elements());
  float largest = 0;
  for (index_t i = 0; i < a.layout.num_elements(); ++i) {
    const float difference = std::abs(a.as<float>()[i] - b.as<float>()[i]);
    if (!(difference <= largest)) largest = difference;  // also catches nan
  }
  return largest;
}

struct GoldenCase {
  const char* file;
  const char* backend;
};

class FluxGolden : public testing::TestWithParam<GoldenCase> {
 protected:
  FluxGolden()
      : golden_(fs::path(FLASHOMNI_SOURCE_DIR) / "tests/data/golden" / GetParam().file),
        directory_("flux-golden") {
    std::string json = golden_.metadata().at("config");
    json.insert(1, "\"_class_name\": \"FluxTransformer2DModel\", ");
    test::write_formula_model(directory_.path(), json);
  }

  ConstTensorView item(const std::string& name, index_t index) const {
    const ConstTensorView all = golden_.tensor(name);
    ConstTensorView one = all.slice(0, index, index + 1);
    if (one.rank() == 3) return one.reshape({one.size(1), one.size(2)});
    return one.reshape({one.size(1)});
  }

  SafetensorsFile golden_;
  TemporaryDirectory directory_;
};

TEST_P(FluxGolden, EveryBlockOfAForwardPass) {
  const auto backend = make_backend(GetParam().backend);
  FluxTransformer model = FluxTransformer::load(directory_.path(), *backend, DType::kF32);
  Engine engine(*backend, {}, make_policy("dense", {}));
  model.begin(engine, kTextTokens, kGridHeight, kGridWidth, 1, 2);

  for (int b = 0; b < 2; ++b) {
    std::map<std::string, float> errors;
    model.set_observer([&](std::string_view name, ConstTensorView value) {
      const auto compare = [&](const std::string& golden, ConstTensorView part) {
        errors[golden] = max_abs_diff(part, item("out." + golden, b));
      };
      if (name == "temb") compare("temb", value);
      for (int i = 0; i < 2; ++i) {
        const std::string n = std::to_string(i), single = "block" + std::to_string(i + 2);
        if (name == "double." + n + ".txt") compare("block" + n + ".encoder_hidden_states", value);
        if (name == "double." + n + ".img") compare("block" + n + ".hidden_states", value);
        if (name != "single." + n) continue;
        compare(single + ".encoder_hidden_states", value.slice(0, 0, kTextTokens));
        compare(single + ".hidden_states", value.slice(0, kTextTokens, value.size(0)));
      }
    });
    const FluxInput input{.latents = item("in.hidden_states", b),
                          .text = item("in.encoder_hidden_states", b),
                          .pooled = item("in.pooled_projections", b),
                          .timestep = golden_.tensor("in.timestep").as<float>()[b],
                          .guidance = golden_.tensor("in.guidance").as<float>()[b]};
    const Tensor out = Tensor::host(DType::kF32, input.latents.layout);
    engine.begin_step(0, b);
    model.forward(engine, input, out);
    errors["sample"] = max_abs_diff(out, item("out.sample", b));

    EXPECT_EQ(errors.size(), 10u);  // temb, 4 blocks x 2 streams, sample
    for (const auto& [name, error] : errors) EXPECT_LE(error, kTolerance) << name;
  }
}

TEST_P(FluxGolden, RopeTables) {
  const FluxConfig config = FluxConfig::from_json(directory_.path() / "config.json");
  const flux::RopeTensors tables = flux::make_rope_tables(
      kTextTokens, place_tokens({1, kGridHeight, kGridWidth}, TokenOrder::kRaster, 1),
      config.axes_dims_rope);
  // diffusers repeats each angle for both channels of a pair.
  const ConstTensorView cos = golden_.tensor("out.rope_cos"), sin = golden_.tensor("out.rope_sin");
  ASSERT_EQ(cos.layout.num_elements(), 2 * tables.cos.num_elements());
  for (index_t i = 0; i < tables.cos.num_elements(); ++i) {
    ASSERT_FLOAT_EQ(tables.cos.as<float>()[i], cos.as<float>()[2 * i]) << i;
    ASSERT_FLOAT_EQ(tables.sin.as<float>()[i], sin.as<float>()[2 * i]) << i;
  }
}

TEST(FluxGoldenWeights, OfTheFormulaAreThoseStoredInTheFile) {
  const SafetensorsFile golden(fs::path(FLASHOMNI_SOURCE_DIR) /
                               "tests/data/golden/golden_tiny_h64.safetensors");
  int compared = 0;
  for (const std::string& name : golden.names()) {
    if (!name.starts_with("w.")) continue;
    const ConstTensorView stored = golden.tensor(name);
    const Tensor formula = test::formula_weight(name.substr(2), stored.layout);
    ++compared;
    for (index_t i = 0; i < formula.num_elements(); ++i) {
      ASSERT_EQ(formula.as<BFloat16>()[i].bits, stored.as<BFloat16>()[i].bits) << name;
    }
  }
  EXPECT_GT(compared, 100);
}

std::vector<GoldenCase> golden_cases() {
  std::vector<GoldenCase> cases;
  for (const BackendInfo& info : list_backends()) {
    if (!info.available || info.name == "cuda") continue;
    for (const char* file : {"golden_tiny_h64.safetensors", "golden_tiny_h128.safetensors"}) {
      cases.push_back({file, info.name.data()});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, FluxGolden, testing::ValuesIn(golden_cases()),
                         [](const testing::TestParamInfo<GoldenCase>& info) {
                           const std::string file = info.param.file;
                           return std::string(info.param.backend) + "_" +
                                  file.substr(12, file.find('.') - 12);
                         });

}  // namespace
}  // namespace flashomni
