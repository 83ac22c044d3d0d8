// The engine's outputs against an fp64 re-computation, on every backend of this machine.
#include "gmock/gmock.h"

#include "oracle.h"

namespace flashomni::test {
namespace {

using testing::Each;
using testing::Not;

// fp32 sums of at most kHidden + kMlpDim products, softmax over kSeqLen tokens, and a forecast that
// weighs three such results by up to k (k + N) / 2 N^2 < 2: about 60 roundings of numbers near 4.
constexpr double kTolerance = 60 * 4 * 0x1p-23;

double max_difference(const Tensor& actual, const Matrix& expected) {
  double worst = 0;
  for (int t = 0; t < kSeqLen; ++t) {
    for (int c = 0; c < kHidden; ++c) {
      const double difference = std::abs(actual.as<float>()[t * kHidden + c] - expected[t][c]);
      worst = difference <= worst ? worst : difference;  // NaN counts as the worst
      if (std::isnan(difference)) return difference;
    }
  }
  return worst;
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const BackendInfo& info : list_backends()) {
    const bool on_host = info.name != "cuda";
    if (info.available && on_host) names.emplace_back(info.name);
  }
  return names;
}

EngineOptions toy_options() {
  return {.warmup = 2, .interval = 3, .order = 2, .block_q = kBlock, .block_kv = kBlock};
}

class EngineOn : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam(), {.num_threads = 2});
  ToyModel model_{*backend_};

  // Runs steps of both branches and compares each output with the oracle's.
  void expect_oracle(const EngineOptions& options, const MaskScript& script, int num_steps) {
    Engine engine(*backend_, options, std::make_unique<ScriptedPolicy>(script));
    const Oracle oracle(script, options.order, options.interval, options.forecast);
    engine.begin(toy_shape(), num_steps, 2);
    std::vector<int> updates;
    for (int step = 0; step < num_steps; ++step) {
      const StepKind kind = engine.step_kind(step);
      if (kind == StepKind::kUpdate) updates.push_back(step);
      for (int branch : {1, 0}) {
        engine.begin_step(step, branch);
        for (int layer = 0; layer < kLayers; ++layer) {
          const Tensor out = model_.run(engine, layer, step, branch);
          const Matrix expected = kind == StepKind::kDispatch
                                      ? oracle.dispatch(layer, step, branch, updates)
                                      : oracle.dense(layer, step, branch);
          EXPECT_LE(max_difference(out, expected), kTolerance)
              << step_kind_name(kind) << " step " << step << ", branch " << branch << ", layer "
              << layer;
        }
      }
    }
  }
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

INSTANTIATE_TEST_SUITE_P(Backends, EngineOn, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashomni::test
