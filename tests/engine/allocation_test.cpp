// A dispatch step allocates nothing: counted over every operator new of the process.
#include <gtest/gtest.h>

#include "allocation_counter.h"
#include "idle_backend.h"
#include "oracle.h"

namespace flashomni::test {
namespace {

EngineOptions toy_options(int order) {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  options.order = order;
  options.block_q = options.block_kv = kBlock;
  return options;
}

// The reference backend is not among them: it allocates a vector for every row.
std::vector<std::string> backends() {
  std::vector<std::string> names = {"idle"};
  for (const BackendInfo& info : list_backends()) {
    if (info.available && info.name == "cpu") names.emplace_back(info.name);
  }
  return names;
}

// Allocations inside the engine's functions, per step kind. The inputs are made outside.
class AllocationCount : public testing::TestWithParam<std::string> {
 protected:
  static std::unique_ptr<Backend> make() {
    if (GetParam() == "idle") return std::make_unique<IdleBackend>();
    return make_backend(GetParam(), {.num_threads = 2});
  }

  void expect_none_on_dispatch_steps(const MaskScript& script) {
    const auto backend = make();
    ToyModel model(*backend);
    Engine engine(*backend, toy_options(2), std::make_unique<ScriptedPolicy>(script));
    const Tensor x = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
    const Tensor mlp = Tensor::host_zeros(DType::kF32, {kSeqLen, kMlpDim});
    const Tensor out = Tensor::host_zeros(DType::kF32, {kSeqLen, kHidden});
    long of_kind[3] = {};
    engine.begin(toy_shape(), 12, 2);
    for (int step = 0; step < 12; ++step) {
      for (int branch = 0; branch < 2; ++branch) {
        const long before = allocations;
        engine.begin_step(step, branch);
        for (int layer = 0; layer < kLayers; ++layer) {
          if (engine.is_layer_forecast(layer)) {
            engine.forecast_module(layer, 0, out);
          } else {
            model.attend(engine, layer, x, mlp, out);
            if (engine.wants_modules(layer)) engine.record_module(layer, 0, out);
          }
        }
        of_kind[static_cast<int>(engine.step_kind(step))] += allocations - before;
      }
    }
    EXPECT_GT(of_kind[static_cast<int>(StepKind::kUpdate)], 0) << "the count counts";
    EXPECT_EQ(of_kind[static_cast<int>(StepKind::kDispatch)], 0);
  }
};

TEST_P(AllocationCount, IsZeroOnSparseDispatchSteps) {
  expect_none_on_dispatch_steps(random_masks);
}

TEST_P(AllocationCount, IsZeroOnForecastDispatchSteps) {
  expect_none_on_dispatch_steps([](int, int, int) { return Masks{}; });
}

INSTANTIATE_TEST_SUITE_P(Backends, AllocationCount, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashomni::test
