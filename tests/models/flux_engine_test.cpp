// The transformer under the engine: what a policy that leaves nothing out must not change, what
// caching must give when nothing changes, and what one generation must not leave to the next.
#include <cmath>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "allocation_counter.h"
#include "backends.h"
#include "flashomni/policy.h"
#include "flux_fixture.h"

namespace flashomni {
namespace {

using test::TemporaryDirectory;

constexpr char kConfig[] =
    R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 4,
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 3, "joint_attention_dim": 8, "pooled_projection_dim": 6,
        "guidance_embeds": true, "axes_dims_rope": [4, 6, 6]})";
constexpr int kChannels = 4, kTextDim = 8, kPooledDim = 6, kLayers = 4;
constexpr int kTextTokens = 11,
              kBranches = 2;  // 11 and 60 tokens: both streams end in short blocks

struct Grid {
  int height, width;
};
constexpr Grid kGrid{6, 10};

Tensor wave(Layout layout, float frequency) {
  Tensor tensor = Tensor::host(DType::kF32, layout);
  for (index_t i = 0; i < tensor.num_elements(); ++i) {
    tensor.as<float>()[i] = std::sin(frequency * static_cast<float>(i + 1));
  }
  return tensor;
}

// The input of every branch. Latents are shared by the branches and move from step to step.
struct Inputs {
  explicit Inputs(Grid grid) : latents(wave({grid.height * grid.width, kChannels}, 0.7f)) {}

  FluxInput at(int step, int num_steps, int branch) const {
    FluxInput input;
    input.latents = latents;
    input.text = text[branch];
    input.pooled = pooled[branch];
    input.timestep = 1 - static_cast<float>(step) / static_cast<float>(num_steps);
    return input;
  }

  Tensor latents;
  const Tensor text[kBranches] = {wave({kTextTokens, kTextDim}, 1.1f),
                                  wave({kTextTokens, kTextDim}, 2.3f)};
  const Tensor pooled[kBranches] = {wave({kPooledDim}, 0.9f), wave({kPooledDim}, 1.9f)};
};

enum class Motion { kDenoise, kFrozen };  // kFrozen: every step sees the input of the first

// The velocities of every step and branch.
using Velocities = std::vector<std::vector<float>>;

Velocities generate(FluxTransformer& model, Engine& engine, int num_steps,
                    Motion motion = Motion::kDenoise, Grid grid = kGrid) {
  Inputs inputs(grid);
  Velocities velocities;
  const Tensor out = Tensor::host(DType::kF32, inputs.latents.view().layout);
  model.begin(engine, kTextTokens, grid.height, grid.width, num_steps, kBranches);
  for (int step = 0; step < num_steps; ++step) {
    for (int branch = 0; branch < kBranches; ++branch) {
      engine.begin_step(step, branch);
      model.forward(engine, inputs.at(motion == Motion::kFrozen ? 0 : step, num_steps, branch),
                    out);
      velocities.emplace_back(out.as<float>(), out.as<float>() + out.num_elements());
    }
    if (motion == Motion::kFrozen) continue;
    for (index_t i = 0; i < out.num_elements(); ++i) {
      inputs.latents.as<float>()[i] -= out.as<float>()[i] / static_cast<float>(num_steps);
    }
  }
  return velocities;
}

float largest_difference(const Velocities& a, const Velocities& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) {
      const float difference = std::abs(a[i][j] - b[i][j]);
      if (!(difference <= largest)) largest = difference;  // also catches nan
    }
  }
  return largest;
}

EngineOptions options(int order, double layer_cache = 0) {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  options.order = order;
  options.layer_cache = layer_cache;
  options.block_q = options.block_kv = 8;
  return options;
}

std::unique_ptr<SparsityPolicy> flashomni_policy(const char* tau_q, const char* tau_kv) {
  return make_policy("flashomni", {{"tau-q", tau_q}, {"tau-kv", tau_kv}});
}

constexpr int kSteps = 11;  // dense, 3 x (update, dispatch, dispatch), and the last, dense

class FluxEngine : public testing::TestWithParam<test::BackendParam> {
 protected:
  FluxEngine() : directory_("flux-engine") {
    test::write_formula_model(directory_.path(), kConfig);
    backend_ = GetParam().make();
    model_.emplace(load(*backend_));
  }

  FluxTransformer load(Backend& backend) const {
    return FluxTransformer::load(directory_.path(), backend, GetParam().dtype);
  }
  Velocities dense(Motion motion = Motion::kDenoise) {
    Engine engine(*backend_, options(0), make_policy("dense", {}));
    return generate(*model_, engine, kSteps, motion);
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Backend> backend_;
  std::optional<FluxTransformer> model_;
};

TEST_P(FluxEngine, ThresholdsOfZeroGiveTheBitsOfTheDenseEngine) {
  const Velocities expected = dense();
  for (int order = 0; order <= kMaxForecastOrder; ++order) {
    Engine engine(*backend_, options(order), flashomni_policy("0", "0"));
    EXPECT_EQ(generate(*model_, engine, kSteps), expected) << "order " << order;
    EXPECT_EQ(engine.stats().dispatch_steps, 6);
    EXPECT_EQ(engine.stats().attention_sparsity, 0);
  }
  Engine sparse(*backend_, options(0), flashomni_policy("0.6", "0.3"));
  EXPECT_NE(generate(*model_, sparse, kSteps), expected) << "the comparison compares";
}

TEST_P(FluxEngine, EveryPolicyGivesTheBitsOfTheDenseEngineWhereItLeavesNothingOut) {
  const std::pair<const char*, PolicyOptions> settings[] = {
      {"spargeattn", {{"cdf", "1"}}},
      {"topk", {{"keep", "1"}}},
      {"streaming", {{"window-blocks", "99"}}},
      {"sliding-tile", {{"tile-window", "99x99"}}},
      {"arrow-window", {{"band", "2"}}},
      {"guidance", {{"tau-q", "0"}}},
      {"pab", {{"broadcast-to", "0"}}},
      {"head-share", {{"head-change", "0"}}},
      {"first-block", {{"reuse-below", "0"}}},
      {"topk+pab", {{"keep", "1"}, {"broadcast-to", "0"}}},
      {"arrow-window+first-block", {{"band", "2"}, {"reuse-below", "0"}}}};
  const Velocities expected = dense();
  for (const auto& [name, values] : settings) {
    Engine engine(*backend_, options(1), make_policy(name, values));
    EXPECT_EQ(generate(*model_, engine, kSteps), expected) << name;
    EXPECT_EQ(engine.stats().attention_sparsity, 0) << name;
    EXPECT_GT(engine.stats().dispatch_steps, 0) << name;
  }
}

// Of an input that does not change nothing is lost by using what was computed before.
TEST_P(FluxEngine, ReusingStepsAttentionsAndHeadsOfAFrozenInputChangesRoundingOnly) {
  const Velocities expected = dense(Motion::kFrozen);
  const std::pair<const char*, PolicyOptions> settings[] = {
      {"first-block", {}},
      {"pab", {{"broadcast-from", "0"}, {"broadcast-to", "1"}}},
      {"head-share", {{"head-change", "1e-6"}}}};
  for (const auto& [name, values] : settings) {
    Engine engine(*backend_, options(1), make_policy(name, values));
    const Velocities cached = generate(*model_, engine, kSteps, Motion::kFrozen);
    const float tolerance = GetParam().dtype == DType::kF32 ? 1e-5f : 2e-2f;
    EXPECT_LE(largest_difference(cached, expected), tolerance) << name;
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.reused_passes, std::string(name) == "first-block" ? 6 * kBranches : 0);
    EXPECT_GT(stats.attention_sparsity, .2) << name;
    if (stats.reused_passes > 0) {
      EXPECT_DOUBLE_EQ(stats.attention_sparsity, 6.0 / kSteps * (kLayers - 1) / kLayers);
    }
    EXPECT_TRUE(engine.fallbacks().empty());
  }
}

// The forecast of something that does not change is what was recorded, in f32 to the bit: a module
// that took another's place, gate or rows would show. In 16 bits what is recorded is rounded, what
// a dense step adds to the residual is not.
TEST_P(FluxEngine, WholeLayerCachingOfAFrozenInputGivesTheBitsOfTheDenseEngine) {
  const Velocities expected = dense(Motion::kFrozen);
  for (int order = 0; order <= kMaxForecastOrder; ++order) {
    Engine engine(*backend_, options(order), make_policy("layer-cache", {}));
    const Velocities cached = generate(*model_, engine, kSteps, Motion::kFrozen);
    const float tolerance = GetParam().dtype == DType::kF32 ? 0.0f : 2e-2f;
    EXPECT_LE(largest_difference(cached, expected), tolerance) << "order " << order;
    EXPECT_EQ(engine.stats().layers_cached, kLayers);
    EXPECT_EQ(engine.stats().cached_fraction, 1);
    EXPECT_TRUE(engine.fallbacks().empty());
  }
}

// Cached heads are summed apart from the computed ones, in fp32: only the order of the sum is left,
// and in bf16 now and then an output on the other side of a rounding border.
TEST_P(FluxEngine, CachingBlocksOfAFrozenInputChangesRoundingOnly) {
  const Velocities expected = dense(Motion::kFrozen);
  for (int order = 0; order <= kMaxForecastOrder; ++order) {
    Engine engine(*backend_, options(order), flashomni_policy("0.6", "0"));
    const Velocities cached = generate(*model_, engine, kSteps, Motion::kFrozen);
    EXPECT_GT(engine.stats().cached_fraction, 0.2);
    EXPECT_EQ(engine.stats().skipped_fraction, 0);
    const float tolerance = GetParam().dtype == DType::kF32 ? 1e-5f : 2e-2f;
    EXPECT_LE(largest_difference(cached, expected), tolerance) << "order " << order;
  }
}

TEST_P(FluxEngine, GenerationsLeaveNothingToTheNext) {
  Engine engine(*backend_, options(1, 0.75), flashomni_policy("0.6", "0.3"));
  const Velocities first = generate(*model_, engine, kSteps);
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.skipped_fraction, 0);
  EXPECT_GT(stats.layers_cached, 0);
  EXPECT_LT(stats.layers_cached, kLayers) << "both kinds of layer are wanted";
  EXPECT_EQ(generate(*model_, engine, kSteps), first);
  // Another number of tokens, and another grid of the same number.
  generate(*model_, engine, 7, Motion::kDenoise, {3, 5});
  EXPECT_NE(generate(*model_, engine, kSteps, Motion::kDenoise, {10, 6}), first);
  EXPECT_EQ(generate(*model_, engine, kSteps), first);
  EXPECT_EQ(engine.stats().layers_cached, stats.layers_cached);
  EXPECT_EQ(engine.stats().attention_sparsity, stats.attention_sparsity);
}

TEST_P(FluxEngine, TwoModelsRunInTwoThreads) {
  const auto run = [&](FluxTransformer& model, Backend& backend) {
    Engine engine(backend, options(1), flashomni_policy("0.6", "0.3"));
    return generate(model, engine, kSteps);
  };
  const Velocities expected = run(*model_, *backend_);
  const std::unique_ptr<Backend> backends[] = {GetParam().make(), GetParam().make()};
  FluxTransformer models[] = {load(*backends[0]), load(*backends[1])};
  Velocities results[2];
  {
    std::jthread other([&] { results[1] = run(models[1], *backends[1]); });
    results[0] = run(models[0], *backends[0]);
  }
  EXPECT_EQ(results[0], expected);
  EXPECT_EQ(results[1], expected);
}

// Those of the backends that promise it; the reference backend allocates a vector for every row.
class FluxAllocations : public FluxEngine {
 protected:
  // Of forward(), by kind of step.
  std::array<long, 3> count(Engine& engine) {
    std::array<long, 3> counts{};
    const Inputs inputs(kGrid);
    const Tensor out = Tensor::host(DType::kF32, inputs.latents.view().layout);
    model_->begin(engine, kTextTokens, kGrid.height, kGrid.width, kSteps, kBranches);
    for (int step = 0; step < kSteps; ++step) {
      for (int branch = 0; branch < kBranches; ++branch) {
        const FluxInput input = inputs.at(step, kSteps, branch);
        engine.begin_step(step, branch);
        const long before = allocations;
        model_->forward(engine, input, out);
        if (step > 0) counts[static_cast<int>(engine.step_kind(step))] += allocations - before;
      }
    }
    return counts;
  }
};

TEST_P(FluxAllocations, AreNoneOnADispatchStep) {
  Engine sparse(*backend_, options(2), flashomni_policy("0.6", "0.3"));
  Engine layer_cache(*backend_, options(2), make_policy("layer-cache", {}));
  Engine pab(*backend_, options(2), make_policy("pab", {}));
  Engine head_share(*backend_, options(2), make_policy("head-share", {{"head-change", "9"}}));
  Engine first_block(*backend_, options(2), make_policy("first-block", {{"reuse-below", ".2"}}));
  for (Engine* engine : {&sparse, &layer_cache, &pab, &head_share, &first_block}) {
    const auto [dense_count, update_count, dispatch_count] = count(*engine);
    EXPECT_GT(update_count, 0) << "the count counts";
    EXPECT_EQ(dispatch_count, 0) << engine->policy().name();
    EXPECT_EQ(dense_count, 0) << engine->policy().name();
  }
}

std::vector<test::BackendParam> host_backends(bool with_reference) {
  std::vector<test::BackendParam> params;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const test::BackendParam& param : test::backends_for(dtype)) {
      const bool is_reference = param.backend == "reference" && dtype == DType::kF32;
      if (param.backend == "cpu" || (is_reference && with_reference)) params.push_back(param);
    }
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Models, FluxEngine, testing::ValuesIn(host_backends(true)),
                         test::param_name);
INSTANTIATE_TEST_SUITE_P(Models, FluxAllocations, testing::ValuesIn(host_backends(false)),
                         test::param_name);

}  // namespace
}  // namespace flashomni
