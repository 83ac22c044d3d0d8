// Whole generations: against the recorded ones, and what holds between any two.
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/image_metrics.h"

#include "golden.h"

namespace flashomni {
namespace {

using test::golden;
using test::GoldenCase;
using test::kPenguin;
using test::kSailboat;
using test::values_of;
using testing::IsEmpty;

// Of f32 against a recording in f32 by another implementation: one forward pass, and the latents
// after 20 guided steps, which amplify the difference.
constexpr double kForwardTolerance = 1e-4;
constexpr double kLatentTolerance = 5e-4;
constexpr double kF32Psnr = 60, kBF16Psnr = 45;  // dB

Pipeline load(DType dtype = DType::kF32, const char* backend = "cpu", int num_threads = 2) {
  return Pipeline::load(test::model_directory(),
                        make_backend(backend, {.num_threads = num_threads}), dtype);
}

// Small enough that a property costs seconds: 256 image tokens.
GenerateRequest small_request(int steps) {
  GenerateRequest request;
  request.prompt = "a fox and an apple in flat style";
  request.width = request.height = 64;
  request.steps = steps;
  request.seed = 7;
  return request;
}

GenerateResult generate_dense(Pipeline& pipeline, const GenerateRequest& request) {
  Engine engine(pipeline.backend(), EngineOptions{}, make_policy("dense", {}));
  return pipeline.generate(request, engine);
}

bool same_latents(const GenerateResult& a, const GenerateResult& b) {
  return std::ranges::equal(values_of(a.latents), values_of(b.latents));
}

// The latents as [3, height, width], clamped like the recorded picture.
std::vector<float> clamped_planes(const GenerateResult& result, int patch) {
  const int width = result.picture.width, height = result.picture.height;
  std::vector<float> planes;
  for (int c = 0; c < 3; ++c) {
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const int token = y / patch * (width / patch) + x / patch;
        const int channel = c * patch * patch + y % patch * patch + x % patch;
        const float value = result.latents.as<float>()[token * 3 * patch * patch + channel];
        planes.push_back(std::clamp(value, -1.0f, 1.0f));
      }
    }
  }
  return planes;
}

TEST(Generate, MeetsTheRecordedPictureInF32) {
  for (const GoldenCase& which : {kPenguin, kSailboat}) {
    Pipeline pipeline = load();
    const GenerateResult result = generate_dense(pipeline, request_of(which));
    EXPECT_GE(psnr_db(result.picture, golden_picture(which)), kF32Psnr) << which.name;
    EXPECT_LE(test::max_difference(clamped_planes(result, 4),
                                   values_of(golden().tensor(which.name + ".image"))),
              kLatentTolerance)
        << which.name;
    EXPECT_THAT(result.warnings, IsEmpty());
    EXPECT_EQ(result.steps.size(), 20u);
    EXPECT_EQ(result.sparsity.dense_steps, 20);
    EXPECT_DOUBLE_EQ(result.macs_done, result.macs_total);
  }
}

// RoPE follows its token, so only the order of sums is left. Tiles of 8 x 8 fill the first picture
// (16 x 16 tokens), not the second (10 x 18), where some are cut short.
TEST(Generate, InTilesDiffersFromRasterByRoundingOnly) {
  Pipeline pipeline = load();
  for (const auto& [height, width] : {std::pair(64, 64), std::pair(40, 72)}) {
    GenerateRequest request = small_request(3);
    request.height = height;
    request.width = width;
    const GenerateResult raster = generate_dense(pipeline, request);
    EngineOptions options;
    options.token_order = TokenOrder::kTile;
    Engine engine(pipeline.backend(), options, make_policy("dense", {}));
    const GenerateResult tiles = pipeline.generate(request, engine);
    EXPECT_EQ(engine.places()[9], (TokenPlace{0, 1, 1}));
    EXPECT_LE(test::max_difference(values_of(tiles.latents), values_of(raster.latents)),
              kLatentTolerance);
  }
}

TEST(Generate, MeetsTheRecordedPictureInBF16) {
  Pipeline pipeline = load(DType::kBF16);
  const GenerateResult result = generate_dense(pipeline, request_of(kPenguin));
  EXPECT_GE(psnr_db(result.picture, golden_picture(kPenguin)), kBF16Psnr);
}

// The transformer at the recorded inputs of steps 0, 5 and 19, prompt and negative prompt.
TEST(Generate, MeetsTheRecordedVelocities) {
  const auto backend = make_backend("cpu", {.num_threads = 2});
  auto transformer =
      FluxTransformer::load(test::model_directory() / "transformer", *backend, DType::kF32);
  Engine engine(*backend, EngineOptions{}, make_policy("dense", {}));
  for (const GoldenCase& which : {kPenguin, kSailboat}) {
    const auto tensor = [&](const std::string& name) {
      return golden().tensor(which.name + "." + name);
    };
    for (const std::string step : {"0", "5", "19"}) {
      for (const std::string branch : {"cond", "uncond"}) {
        const std::string output = "v_" + branch + "_step" + step;
        if (!golden().contains(which.name + "." + output)) continue;
        const std::string text = branch == "cond" ? which.name : "null";
        FluxInput input;
        input.latents = step == "0" ? tensor("noise") : tensor("x_step" + step);
        input.text = golden().tensor(text + ".prompt_embeds");
        input.pooled = golden().tensor(text + ".pooled");
        input.timestep = tensor("sigmas").as<float>()[std::stoi(step)];
        const Tensor velocity = Tensor::host(DType::kF32, input.latents.layout);
        transformer.begin(engine, 32, which.height / 4, which.width / 4, 1, 1);
        engine.begin_step(0, 0);
        transformer.forward(engine, input, velocity);
        EXPECT_LE(test::max_difference(values_of(velocity), values_of(tensor(output))),
                  kForwardTolerance)
            << which.name << " " << output;
      }
    }
  }
}

// Through the slow backend too: 64 image tokens, one guided step.
TEST(Generate, AgreesWithTheReferenceBackend) {
  GenerateRequest request = small_request(1);
  request.width = request.height = 32;
  Pipeline fast = load(), slow = load(DType::kF32, "reference");
  EXPECT_LE(test::max_difference(values_of(generate_dense(fast, request).latents),
                                 values_of(generate_dense(slow, request).latents)),
            kForwardTolerance);
}

TEST(Generate, RepeatsItself) {
  Pipeline pipeline = load();
  const GenerateRequest request = small_request(3);
  const GenerateResult first = generate_dense(pipeline, request);
  GenerateRequest other = small_request(2);  // another size and prompt in between
  other.prompt = "three red hearts";
  other.width = 32;
  EXPECT_EQ(generate_dense(pipeline, other).picture.width, 32);
  pipeline.warm_up(request);
  const GenerateResult second = generate_dense(pipeline, request);
  EXPECT_TRUE(same_latents(first, second));
  EXPECT_EQ(first.picture.rgb, second.picture.rgb);
  GenerateRequest seeded = request;
  seeded.seed = 8;
  EXPECT_FALSE(same_latents(first, generate_dense(pipeline, seeded)));
}

TEST(Generate, ASparseEngineLeavesNoTraceInTheNextGeneration) {
  Pipeline pipeline = load();
  const GenerateRequest request = small_request(8);
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  Engine engine(pipeline.backend(), options,
                make_policy("flashomni", {{"tau-q", "0.5"}, {"tau-kv", "0.1"}}));
  const GenerateResult first = pipeline.generate(request, engine);
  const GenerateResult second = pipeline.generate(request, engine);
  EXPECT_GT(first.sparsity.cached_fraction, 0);
  EXPECT_TRUE(same_latents(first, second));
}

TEST(Generate, TwoPipelinesRunSideBySide) {
  const GenerateRequest request = small_request(2);
  Pipeline alone = load(DType::kF32, "cpu", 1);
  const GenerateResult expected = generate_dense(alone, request);
  GenerateResult results[2];
  std::vector<std::thread> threads;
  for (GenerateResult& result : results) {
    threads.emplace_back([&] {
      Pipeline pipeline = load(DType::kF32, "cpu", 1);
      result = generate_dense(pipeline, request);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(same_latents(results[0], expected));
  EXPECT_TRUE(same_latents(results[1], expected));
}

TEST(Generate, SelectingNothingEqualsDenseBitForBit) {
  Pipeline pipeline = load();
  const GenerateRequest request = small_request(6);
  const GenerateResult dense = generate_dense(pipeline, request);
  EngineOptions options;
  options.warmup = 1;
  options.interval = 3;
  Engine engine(pipeline.backend(), options,
                make_policy("flashomni", {{"tau-q", "0"}, {"tau-kv", "0"}}));
  const GenerateResult sparse = pipeline.generate(request, engine);
  EXPECT_GT(sparse.sparsity.dispatch_steps, 0);
  EXPECT_EQ(sparse.sparsity.attention_sparsity, 0);
  EXPECT_TRUE(same_latents(dense, sparse));
}

TEST(Generate, WithoutGuidanceOneBranchRuns) {
  Pipeline pipeline = load();
  GenerateRequest request = small_request(2);
  const GenerateResult guided = generate_dense(pipeline, request);
  request.cfg = 1;
  const GenerateResult unguided = generate_dense(pipeline, request);
  EXPECT_DOUBLE_EQ(unguided.macs_total * 2, guided.macs_total);
  EXPECT_FALSE(same_latents(guided, unguided));
}

TEST(Generate, OwnNoiseReplacesTheSeed) {
  Pipeline pipeline = load();
  GenerateRequest request = request_of(kSailboat);
  request.steps = 1;
  const GenerateResult seeded = generate_dense(pipeline, request);
  request.seed = 1;
  Engine engine(pipeline.backend(), EngineOptions{}, make_policy("dense", {}));
  const GenerateResult given = pipeline.generate(request, engine, {}, golden().tensor("p3.noise"));
  EXPECT_LE(test::max_difference(values_of(seeded.latents), values_of(given.latents)),
            kForwardTolerance);
}

}  // namespace
}  // namespace flashomni
