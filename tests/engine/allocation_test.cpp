// A dispatch step allocates nothing: counted over every operator new of the process.
#include <atomic>
#include <cstdlib>
#include <new>

#include <gtest/gtest.h>

#include "idle_backend.h"
#include "oracle.h"

namespace {

std::atomic<long> allocations{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, rounded ? rounded : alignment);
}

void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* memory = allocate(bytes, alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

constexpr std::size_t kDefaultAlignment = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, kDefaultAlignment); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, kDefaultAlignment);
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

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
