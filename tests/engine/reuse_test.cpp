// What the engine measures for caching policies that look back: how far heads moved, and whether a
// step may be reused; each against numbers computed here.
#include "gmock/gmock.h"

#include "backend/metered.h"
#include "errors.h"
#include "oracle.h"

namespace flashomni::test {
namespace {

EngineOptions toy_options() {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  options.block_q = options.block_kv = kBlock;
  return options;
}

// Attention outputs of one head before the projection, in fp64.
Matrix attended(const Oracle::Qkv& head) {
  Matrix out(kSeqLen, std::vector<double>(kHeadDim));
  for (int t = 0; t < kSeqLen; ++t) {
    double total = 0;
    for (int s = 0; s < kSeqLen; ++s) {
      double logit = 0;
      for (int d = 0; d < kHeadDim; ++d) logit += head.q[t][d] * head.k[s][d];
      const double weight = std::exp(logit / std::sqrt(double(kHeadDim)));
      total += weight;
      for (int d = 0; d < kHeadDim; ++d) out[t][d] += weight * head.v[s][d];
    }
    for (double& value : out[t]) value /= total;
  }
  return out;
}

// What select() saw, by (step, branch, layer); empty where nothing was measured.
using Changes = std::map<std::array<int, 3>, std::vector<float>>;

class ChangeWatcher : public SparsityPolicy {
 public:
  explicit ChangeWatcher(Changes& seen) : seen_(seen) {}
  std::string_view name() const override { return "change-watcher"; }
  PolicyTraits traits() const override { return {.head_change = true}; }
  void select(const PolicyContext& context, SparseSymbols&) const override {
    seen_[{context.step, context.branch, context.layer}] = {context.head_change.begin(),
                                                            context.head_change.end()};
  }

 private:
  Changes& seen_;
};

TEST(HeadChange, IsTheRelativeDistanceOfTwoUpdatesPerStep) {
  const auto backend = make_backend("reference");
  ToyModel model(*backend);
  Changes seen;
  Engine engine(*backend, toy_options(), std::make_unique<ChangeWatcher>(seen));
  for (int generation = 0; generation < 2; ++generation) {
    seen.clear();
    engine.begin(toy_shape(), 9, 2);
    for (int step = 0; step < 9; ++step) {
      for (int branch = 0; branch < 2; ++branch) {
        engine.begin_step(step, branch);
        for (int layer = 0; layer < kLayers; ++layer) model.run(engine, layer, step, branch);
      }
    }
    ASSERT_EQ(seen.size(), 3u * 2 * kLayers);  // updates at steps 1, 4 and 7
    const Oracle oracle(random_masks, 0, 1, ForecastKind::kTaylor);
    for (const auto& [where, change] : seen) {
      const auto [step, branch, layer] = where;
      if (step == 1) {
        EXPECT_TRUE(change.empty());
        continue;
      }
      ASSERT_EQ(change.size(), std::size_t(kHeads));
      for (int h = 0; h < kHeads; ++h) {
        const Matrix now = attended(oracle.qkv(layer, step, branch, h));
        const Matrix last = attended(oracle.qkv(layer, step - 3, branch, h));
        double difference = 0, total = 0;
        for (int t = 0; t < kSeqLen; ++t) {
          for (int d = 0; d < kHeadDim; ++d) {
            difference += std::pow(now[t][d] - last[t][d], 2);
            total += std::pow(now[t][d], 2);
          }
        }
        EXPECT_NEAR(change[h], std::sqrt(difference / total) / 3, 1e-5);
      }
    }
  }
}

TEST(CachedHeads, AreNotProjected) {
  MeteredBackend backend(make_backend("reference"));
  ToyModel model(backend);
  const auto one_head = [](int, int, int) {
    Masks masks = random_masks(0, 0, 0);
    for (int h = 0; h < kHeads; ++h) std::ranges::fill(masks.cache[h], h == 1);
    return masks;
  };
  Engine engine(backend, toy_options(), std::make_unique<ScriptedPolicy>(one_head));
  engine.begin(toy_shape(), 5, 1);
  double macs[3];
  for (int step = 0; step < 3; ++step) {
    backend.reset();
    engine.begin_step(step, 0);
    for (int layer = 0; layer < kLayers; ++layer) model.run(engine, layer, step, 0);
    macs[step] = backend.cost(OpKind::kGemmQ).macs;
  }
  EXPECT_EQ(macs[1], macs[0]);
  EXPECT_EQ(macs[2], macs[0] / kHeads) << "Q, K and V of one head of two";
}

class Reuse : public SparsityPolicy {
 public:
  explicit Reuse(double below) : below_(below) {}
  std::string_view name() const override { return "reuse"; }
  void select(const PolicyContext&, SparseSymbols&) const override {}
  PolicyTraits traits() const override { return {.reuse_below = below_}; }

 private:
  double below_;
};

// A model whose hidden states are all one number: layer 0 adds `first`, layer 1 adds `second`.
class NumberModel {
 public:
  float run(Engine& engine, int step, int branch, float first, float second) {
    engine.begin_step(step, branch);
    fill(100.f * static_cast<float>(step));
    engine.begin_layers(hidden_);
    add(first);
    if (engine.end_layer(0, hidden_)) return value();
    add(second);
    EXPECT_FALSE(engine.end_layer(1, hidden_));
    return value();
  }

 private:
  void fill(float value) { std::fill_n(hidden_.as<float>(), hidden_.num_elements(), value); }
  void add(float value) {
    for (index_t i = 0; i < hidden_.num_elements(); ++i) hidden_.as<float>()[i] += value;
  }
  float value() const { return hidden_.as<float>()[hidden_.num_elements() - 1]; }

  Tensor hidden_ = Tensor::host(DType::kF32, {kSeqLen, kHidden});
};

TEST(StepReuse, AddsWhatTheOtherLayersAddedWhileTheFirstOneChangesLittle) {
  const auto backend = make_backend("reference");
  EngineOptions options = toy_options();
  options.interval = 4;
  Engine engine(*backend, options, std::make_unique<Reuse>(.25));
  NumberModel model;
  for (int generation = 0; generation < 2; ++generation) {
    engine.begin(toy_shape(), 9, 2);  // dense, update, 3 dispatch, update, 2 dispatch, dense
    EXPECT_EQ(model.run(engine, 0, 0, 8, 1000), 1008) << "dense";
    EXPECT_EQ(model.run(engine, 0, 1, 4, 2000), 2004);
    EXPECT_EQ(model.run(engine, 1, 0, 8, 3000), 3108) << "update";
    EXPECT_EQ(model.run(engine, 1, 1, 4, 4000), 4104);
    EXPECT_EQ(model.run(engine, 2, 0, 10, 0), 3210) << "10 is 25 % from 8: reused";
    EXPECT_EQ(model.run(engine, 2, 1, 6, 5000), 5206) << "6 is 50 % from 4: computed";
    EXPECT_EQ(model.run(engine, 3, 0, 11, 6000), 6311) << "11 is against 8, the last computed";
    EXPECT_EQ(model.run(engine, 3, 1, 5, 0), 5305) << "5 is against 6";
    EXPECT_EQ(model.run(engine, 4, 0, 11, 0), 6411);
    EXPECT_EQ(model.run(engine, 4, 1, 6, 0), 5406);
    EXPECT_EQ(model.run(engine, 5, 0, 11, 7000), 7511) << "updates are always computed";
    EXPECT_EQ(model.run(engine, 5, 1, 6, 8000), 8506);
    EXPECT_EQ(engine.stats().reused_passes, 4);
  }
}

TEST(StepReuse, MultipliesTheThresholdByTheRamp) {
  const auto backend = make_backend("reference");
  EngineOptions options = toy_options();
  options.ramp = 1;
  Engine engine(*backend, options, std::make_unique<Reuse>(.5));
  engine.begin(toy_shape(), 8, 1);
  NumberModel model;
  for (int step = 0; step < 2; ++step) model.run(engine, step, 0, 8, 1000);
  EXPECT_EQ(model.run(engine, 2, 0, 10, 0), 210) << "25 % against .5 * 2 / 8";
  EXPECT_EQ(model.run(engine, 3, 0, 11, 3000), 1311 - 1000) << "10 % against .5 * 3 / 8";
}

TEST(StepReuse, NotesAModelThatDoesNotShowItsHiddenStates) {
  const auto backend = make_backend("reference");
  ToyModel model(*backend);
  Engine engine(*backend, toy_options(), std::make_unique<Reuse>(9));
  engine.begin(toy_shape(), 6, 1);
  for (int step = 0; step < 5; ++step) {
    engine.begin_step(step, 0);
    for (int layer = 0; layer < kLayers; ++layer) model.run(engine, layer, step, 0);
  }
  ASSERT_EQ(engine.fallbacks().size(), 1u);
  EXPECT_EQ(engine.fallbacks()[0].reason,
            "the model does not show its hidden states: no step is reused");
  EXPECT_EQ(engine.stats().attention_sparsity, 0);
}

TEST(StepReuse, NamesHiddenStatesOfAnotherShape) {
  const auto backend = make_backend("reference");
  Engine engine(*backend, toy_options(), std::make_unique<Reuse>(9));
  engine.begin(toy_shape(), 6, 1);
  engine.begin_step(0, 0);
  EXPECT_EQ(error_of([&] {
              engine.begin_layers(Tensor::host(DType::kF32, {3, 4}));
            }),
            "begin_layers: hidden is f32 [3, 4], must be contiguous f32 [25, 16]");
}

TEST(Engine, NamesPlacesOfAnotherNumber) {
  const auto backend = make_backend("reference");
  Engine engine(*backend, toy_options(), make_policy("radial", {}));
  SequenceShape shape = toy_shape();
  shape.places = place_tokens({1, 3, 5}, TokenOrder::kRaster, 1);
  EXPECT_EQ(error_of([&] { engine.begin(shape, 6, 1); }),
            "begin: there are 15 places, the sequence has 18 image tokens");
  shape.places = place_tokens({1, 3, 6}, TokenOrder::kRaster, 1);
  engine.begin(shape, 6, 1);
  EXPECT_TRUE(engine.fallbacks().empty());
  EXPECT_EQ(engine.places().size(), 18u);
}

}  // namespace
}  // namespace flashomni::test
