// The engine's outputs against an fp64 re-computation, on every host backend of this machine.
#include <cstring>
#include <thread>

#include "gmock/gmock.h"

#include "oracle.h"

namespace flashomni::test {
namespace {

// fp32 sums of at most kHidden + kMlpDim products, softmax over kSeqLen tokens, and a forecast that
// weighs three such results by at most 2: about 60 roundings of numbers near 4.
constexpr double kTolerance = 60 * 4 * 0x1p-23;

double max_difference(const Tensor& actual, const Matrix& expected) {
  double worst = 0;
  for (int t = 0; t < kSeqLen; ++t) {
    for (int c = 0; c < kHidden; ++c) {
      const double difference = std::abs(actual.as<float>()[t * kHidden + c] - expected[t][c]);
      if (!(difference <= worst)) worst = difference;  // so that NaN stays
    }
  }
  return worst;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.view().data, b.view().data, static_cast<std::size_t>(a.bytes())) == 0;
}

std::vector<std::string> host_backends() {
  std::vector<std::string> names;
  for (const BackendInfo& info : list_backends()) {
    if (info.available && info.name != "cuda") names.emplace_back(info.name);
  }
  return names;
}

EngineOptions toy_options() {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  options.order = 2;
  options.block_q = options.block_kv = kBlock;
  return options;
}

class EngineOn : public testing::TestWithParam<std::string> {
 protected:
  using Visit = std::function<void(int step, int branch, int layer, const Tensor& out)>;

  // A generation of two branches, the second one first.
  void generate(Engine& engine, int num_steps, const Visit& visit) {
    engine.begin(toy_shape(), num_steps, 2);
    for (int step = 0; step < num_steps; ++step) {
      for (int branch : {1, 0}) {
        engine.begin_step(step, branch);
        for (int layer = 0; layer < kLayers; ++layer) {
          visit(step, branch, layer, model_.run(engine, layer, step, branch));
        }
      }
    }
  }

  void expect_oracle(const EngineOptions& options, const MaskScript& script, int num_steps,
                     const PolicyTraits& traits = {}) {
    Engine engine(*backend_, options, std::make_unique<ScriptedPolicy>(script, traits));
    const Oracle oracle(script, std::min(options.order, traits.max_order), options.interval,
                        options.forecast);
    std::vector<int> updates;
    generate(engine, num_steps, [&](int step, int branch, int layer, const Tensor& out) {
      const StepKind kind = engine.step_kind(step);
      if (kind == StepKind::kUpdate && (updates.empty() || updates.back() != step)) {
        updates.push_back(step);
      }
      const auto expected = [&] {
        if (kind != StepKind::kDispatch) return oracle.dense(layer, step, branch);
        if (engine.is_layer_forecast(layer)) return oracle.forecast(layer, step, branch, updates);
        return oracle.dispatch(layer, step, branch, updates);
      };
      EXPECT_LE(max_difference(out, expected()), kTolerance)
          << step_kind_name(kind) << " step " << step << ", branch " << branch << ", layer "
          << layer;
    });
  }

  std::unique_ptr<Backend> backend_ = make_backend(GetParam(), {.num_threads = 2});
  ToyModel model_{*backend_};
};

TEST_P(EngineOn, UpdatesAndDispatchesAsDefined) {
  for (int order = 0; order <= 2; ++order) {
    for (ForecastKind forecast : {ForecastKind::kTaylor, ForecastKind::kNewton}) {
      SCOPED_TRACE(order);
      EngineOptions options = toy_options();
      options.order = order;
      options.forecast = forecast;
      expect_oracle(options, random_masks, 12);
    }
  }
}

Masks nothing_live(int, int, int) { return {}; }

TEST_P(EngineOn, ForecastsWholeLayersAsDefined) {
  for (int order = 0; order <= 2; ++order) {
    EngineOptions options = toy_options();
    options.order = order;
    options.forecast = order == 2 ? ForecastKind::kNewton : ForecastKind::kTaylor;
    expect_oracle(options, nothing_live, 12);
  }
}

TEST_P(EngineOn, MixesForecastAndSparseLayersOfBranches) {
  expect_oracle(
      toy_options(),
      [](int layer, int branch, int step) {
        return layer == branch ? nothing_live(layer, branch, step)
                               : random_masks(layer, branch, step);
      },
      10);
}

// Where modules are wanted the plain projection is written too.
TEST_P(EngineOn, AddsTheGatedProjectionToAResidual) {
  model_.adds = true;
  expect_oracle(toy_options(), random_masks, 12);
  expect_oracle(toy_options(), nothing_live, 12);
}

// Text rows are one more stream to the engine: only policies protect them.
TEST_P(EngineOn, CachesTextRowsWhereAPolicySaysSo) {
  expect_oracle(
      toy_options(),
      [](int layer, int branch, int step) {
        Masks masks = random_masks(layer, branch, step);
        masks.cache[0][0] = masks.cache[1][1] = false;
        return masks;
      },
      8);
}

// Keys and values of such a head are not even projected.
TEST_P(EngineOn, CachesHeadsWhole) {
  expect_oracle(
      toy_options(),
      [](int layer, int branch, int step) {
        Masks masks = random_masks(layer, branch, step);
        std::ranges::fill(masks.cache[layer], false);
        return masks;
      },
      8);
}

TEST_P(EngineOn, CachesAllAttentionButNoLayer) {
  expect_oracle(toy_options(), nothing_live, 8, {.caches_layers = false});
  expect_oracle(toy_options(), nothing_live, 8, {.caches_layers = false, .max_order = 0});
}

TEST_P(EngineOn, ForecastsNoHigherThanThePolicyWants) {
  expect_oracle(toy_options(), random_masks, 9, {.max_order = 1});
  expect_oracle(toy_options(), nothing_live, 9, {.max_order = 0});
}

Masks skip_only(int layer, int branch, int step) {
  Masks masks = random_masks(layer, branch, step);
  for (auto& head : masks.cache) std::ranges::fill(head, true);
  return masks;
}

// Of layers in whole-layer caching (layer 0) and of others.
TEST_P(EngineOn, SkipsOnUpdatesWhereThePolicyDoes) {
  const auto script = [](int layer, int branch, int step) {
    return layer == 0 ? Masks{} : random_masks(layer, branch, step);
  };
  EngineOptions options = toy_options();
  options.order = 0;
  Engine engine(
      *backend_, options,
      std::make_unique<ScriptedPolicy>(script, PolicyTraits{.skips_on_updates = true}, skip_only));
  const Oracle oracle(skip_only, 0, options.interval, options.forecast);
  Matrix of_update[2];
  generate(engine, 9, [&](int step, int branch, int layer, const Tensor& out) {
    const int same_step[] = {step};
    const StepKind kind = engine.step_kind(step);
    if (kind == StepKind::kDispatch && layer == 1) return;
    Matrix expected = of_update[branch];  // a forecast of order 0
    if (kind == StepKind::kDense) expected = oracle.dense(layer, step, branch);
    if (kind == StepKind::kUpdate) expected = oracle.dispatch(layer, step, branch, same_step);
    if (kind == StepKind::kUpdate && layer == 0) of_update[branch] = expected;
    EXPECT_LE(max_difference(out, expected), kTolerance) << step << " " << branch << " " << layer;
  });
  EXPECT_GT(engine.stats().attention_sparsity, 0);
}

TEST_P(EngineOn, IsBitIdenticalToDenseAtThresholdsOfZero) {
  std::vector<Tensor> expected;
  Engine dense(*backend_, toy_options(), make_policy("dense", {}));
  generate(dense, 9, [&](int, int, int, const Tensor& out) { expected.push_back(out.clone()); });
  for (const char* zero : {"0", "-1"}) {
    Engine engine(*backend_, toy_options(),
                  make_policy("flashomni", {{"tau-q", zero}, {"tau-kv", zero}}));
    std::size_t n = 0;
    generate(engine, 9, [&](int step, int branch, int layer, const Tensor& out) {
      EXPECT_TRUE(same_bits(out, expected[n++])) << step << " " << branch << " " << layer;
    });
    EXPECT_EQ(engine.stats().attention_sparsity, 0);
    EXPECT_GT(engine.stats().dispatch_steps, 0);
  }
}

// A policy of which the engine does not know that a backend can select by it.
class OnTheHost : public SparsityPolicy {
 public:
  explicit OnTheHost(std::unique_ptr<SparsityPolicy> policy) : policy_(std::move(policy)) {}
  std::string_view name() const override { return policy_->name(); }
  std::optional<BlockScoreOptions> needs() const override { return policy_->needs(); }
  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    policy_->select(context, symbols);
  }
  PolicyTraits traits() const override { return policy_->traits(); }

 private:
  std::unique_ptr<SparsityPolicy> policy_;
};

TEST_P(EngineOn, SelectsByTheBackendWhatTheHostSelects) {
  const PolicyOptions settings[] = {{{"tau-q", "0.7"}, {"tau-kv", "0.3"}},
                                    {{"tau-q", "0.6"}, {"scope", "layer"}, {"tau-kv", "0.2"}},
                                    {{"subtract-k-mean", "true"},
                                     {"log-count-bias", "true"},
                                     {"sim-threshold", "0.1"},
                                     {"keep-text-kv", "false"},
                                     {"tau-kv", "0.4"}}};
  for (const PolicyOptions& setting : settings) {
    EngineOptions options = toy_options();
    options.ramp = .3;
    const auto policy = [&] { return make_policy("flashomni", setting); };
    ASSERT_TRUE(policy()->selection());
    Engine by_backend(*backend_, options, policy());
    Engine on_host(*backend_, options, std::make_unique<OnTheHost>(policy()));
    std::vector<Tensor> expected;
    std::vector<SparseSymbols> symbols;
    generate(on_host, 9, [&](int, int branch, int layer, const Tensor& out) {
      expected.push_back(out.clone());
      symbols.push_back(on_host.symbols(layer, branch));
    });
    std::size_t n = 0;
    generate(by_backend, 9, [&](int step, int branch, int layer, const Tensor& out) {
      EXPECT_EQ(by_backend.symbols(layer, branch), symbols[n]) << step << " " << layer;
      EXPECT_TRUE(same_bits(out, expected[n++])) << step << " " << branch << " " << layer;
    });
    EXPECT_GT(by_backend.stats().attention_sparsity, 0);
    EXPECT_TRUE(by_backend.fallbacks().empty());
  }
}

// Two engines with backends of their own, in two threads, give what each gives alone.
TEST_P(EngineOn, RunsBesideAnotherEngine) {
  const auto outputs = [](int seed) {
    const auto backend = make_backend(GetParam(), {.num_threads = 2});
    ToyModel model(*backend);
    Engine engine(*backend, toy_options(),
                  std::make_unique<ScriptedPolicy>([seed](int layer, int branch, int step) {
                    return random_masks(layer, branch, step + seed);
                  }));
    std::vector<Tensor> all;
    for (int generation = 0; generation < 3; ++generation) {
      engine.begin(toy_shape(), 7, 1);
      for (int step = 0; step < 7; ++step) {
        engine.begin_step(step, 0);
        all.push_back(model.run(engine, 0, step, 0));
        all.push_back(model.run(engine, 1, step, 0));
      }
    }
    return all;
  };
  const auto alone_a = outputs(0), alone_b = outputs(100);
  std::vector<Tensor> a, b;
  std::thread thread([&] { a = outputs(0); });
  b = outputs(100);
  thread.join();
  for (std::size_t n = 0; n < a.size(); ++n) {
    EXPECT_TRUE(same_bits(a[n], alone_a[n])) << n;
    EXPECT_TRUE(same_bits(b[n], alone_b[n])) << n;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, EngineOn, testing::ValuesIn(host_backends()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashomni::test
