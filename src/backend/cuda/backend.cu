#include <algorithm>
#include <memory>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/elementwise.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/linear_f32.h"
#include "backend/cuda/policy.h"
#include "core/half.h"

namespace flashomni {
namespace {

using cuda::DeviceAttentionPlan;
using cuda::DeviceGemmPlan;
using cuda::LaunchTarget;

cudaStream_t handle_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Compute capability 9.0 has the kernels of today (kernels.cu).
bool has_kernels(const cudaDeviceProp& device) { return device.major == 9 && device.minor == 0; }

std::string describe(const cudaDeviceProp& device) {
  return format("%s, compute capability %d.%d, %d multiprocessors", device.name, device.major,
                device.minor, device.multiProcessorCount);
}

// The backend's lists of a plan: those kept beside it, or new ones in `spare` for this call alone.
template <typename Lists, typename Plan, typename Fill>
Lists& lists_of(const Plan& plan, Lists& spare, Fill&& fill) {
  if (plan.backend_lists) return *static_cast<Lists*>(plan.backend_lists.get());
  fill(spare);
  return spare;
}

// The backend's lists of an object, made if there are none.
template <typename Lists>
Lists& lists_in(BackendLists& lists) {
  if (!lists) lists = {new Lists, [](void* data) { delete static_cast<Lists*>(data); }};
  return *static_cast<Lists*>(lists.get());
}

// Moves the lists out of a plan while `build` makes it anew, so that their storage is used again.
template <typename Lists, typename Plan, typename Build>
Lists& rebuild(Plan& plan, Build&& build) {
  BackendLists lists = std::move(plan.backend_lists);
  lists_in<Lists>(lists);
  plan.backend_lists = no_backend_lists();
  build();
  plan.backend_lists = std::move(lists);
  return *static_cast<Lists*>(plan.backend_lists.get());
}

// An attention plan of which only the device knows the lists.
void begin_device_plan(const SymbolWords& words, AttentionPlan& plan) {
  plan.q_grid = words.q_grid;
  plan.kv_grid = words.kv_grid;
  plan.num_heads = words.num_heads;
  plan.items.clear();
  plan.kv_blocks.clear();
  plan.stats = {};
  plan.lists_on_device = true;
}

// Makes a device the calling thread's current one, as launches and allocations need, for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    FO_CUDA(cudaGetDevice(&before_));
    if (before_ != device) FO_CUDA(cudaSetDevice(device));
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

class EventTimer final : public DeviceTimer {
 public:
  explicit EventTimer(int device) : device_(device) {}
  ~EventTimer() override {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  int mark(Stream stream) override {
    const DeviceScope scope(device_);
    if (count_ == static_cast<int>(events_.size())) {
      FO_CUDA(cudaEventCreate(&events_.emplace_back()));
    }
    FO_CUDA(cudaEventRecord(events_[count_], handle_of(stream)));
    return count_++;
  }
  double seconds(int from, int to) override {
    float milliseconds = 0;
    FO_CUDA(cudaEventSynchronize(events_[from]));
    FO_CUDA(cudaEventSynchronize(events_[to]));
    FO_CUDA(cudaEventElapsedTime(&milliseconds, events_[from], events_[to]));
    return 1e-3 * milliseconds;
  }
  void reset() override { count_ = 0; }

 private:
  const int device_;
  std::vector<cudaEvent_t> events_;
  int count_ = 0;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device_index, const cudaDeviceProp& device)
      : device_index_(device_index),
        arch_(10 * device.major + device.minor),
        num_sms_(device.multiProcessorCount),
        description_(describe(device)),
        timer_(device_index) {}

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  Device device() const override { return {DeviceType::kCuda, device_index_}; }

  Tensor allocate(DType dtype, Layout layout) override {
    const DeviceScope scope(device_index_);
    const index_t bytes = layout.num_elements() * size_in_bytes(dtype);
    void* data = nullptr;
    if (cudaMalloc(&data, static_cast<std::size_t>(std::max<index_t>(bytes, 1))) != cudaSuccess) {
      cudaGetLastError();
      FO_FAIL(kOutOfMemory, "allocate: the GPU has no %lld bytes left",
              static_cast<long long>(bytes));
    }
    return {TensorView(data, dtype, layout, device()), [](void* p, void*) { cudaFree(p); },
            nullptr};
  }

  void copy(ConstTensorView from, TensorView to, Stream stream) override {
    const DeviceScope scope(device_index_);
    const index_t bytes = to.layout.num_elements() * size_in_bytes(to.dtype);
    FO_CUDA(cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(bytes), cudaMemcpyDefault,
                            handle_of(stream)));
    if (to.device.type == DeviceType::kCpu) FO_CUDA(cudaStreamSynchronize(handle_of(stream)));
  }
  void synchronize(Stream stream) override {
    const DeviceScope scope(device_index_);
    FO_CUDA(cudaStreamSynchronize(handle_of(stream)));
  }
  DeviceTimer* device_timer() override { return &timer_; }

  // Row-major, as it came, rounded to `dtype`.
  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override {
    PackedWeight packed;
    packed.out_features = weight.size(0);
    packed.in_features = weight.size(1);
    packed.dtype = dtype;
    packed.column_group = column_group;
    Tensor host = Tensor::host(dtype, {packed.out_features, packed.in_features});
    for (index_t row = 0; row < packed.out_features; ++row) {
      for (index_t column = 0; column < packed.in_features; ++column) {
        store_float(host, row * packed.in_features + column,
                    load_float(weight, row * weight.stride(0) + column * weight.stride(1)));
      }
    }
    packed.storage = allocate(dtype, host.view().layout);
    copy(host, packed.storage, {});
    synchronize({});
    return packed;
  }

  PackedWeight borrow_weight(ConstTensorView weight, int column_group) override {
    PackedWeight borrowed;
    borrowed.storage = Tensor(
        TensorView(const_cast<void*>(weight.data), weight.dtype, weight.layout, weight.device),
        [](void*, void*) {}, nullptr);
    borrowed.out_features = weight.size(0);
    borrowed.in_features = weight.size(1);
    borrowed.dtype = weight.dtype;
    borrowed.column_group = column_group;
    return borrowed;
  }

  // Half the memory traffic of f32, which is what bounds a sparse dispatch.
  DType bias_cache_dtype(DType weight) const override { return weight; }

  void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan,
                            Stream stream) override {
    const DeviceScope scope(device_index_);
    auto& lists =
        rebuild<DeviceAttentionPlan>(plan, [&] { flashomni::build_attention_plan(symbols, plan); });
    lists.assign(plan, cut_options(), handle_of(stream));
  }
  void build_attention_plan_from(const SymbolWords& words, AttentionPlan& plan,
                                 Stream stream) override {
    const DeviceScope scope(device_index_);
    auto& lists = rebuild<DeviceAttentionPlan>(plan, [&] { begin_device_plan(words, plan); });
    lists.assign(words, cut_options(), handle_of(stream));
  }
  void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                       const SparseSymbols* previous, GemmPlan& plan, Stream) override {
    rebuild<DeviceGemmPlan>(plan, [&] {
      flashomni::build_gemm_plan(symbols, first_token, num_tokens, previous, plan);
    }).reset();
  }

  void build_gemm_plan_from(const SymbolWords& words, int first_token, int num_tokens,
                            const SymbolWords* previous, GemmPlan& plan, Stream stream) override {
    const DeviceScope scope(device_index_);
    lists_in<DeviceGemmPlan>(plan.backend_lists)
        .assign(words, first_token, num_tokens, previous, plan, target(stream));
  }

  void attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                 float scale, TensorView out, TensorView lse, Stream stream,
                 const AttentionReuse& reuse) override {
    const DeviceScope scope(device_index_);
    DeviceAttentionPlan spare;
    lists_of(plan, spare, [&](DeviceAttentionPlan& lists) {
      lists.assign(plan, cut_options(), handle_of(stream));
    }).launch(plan, {q, k, v, out, lse, scale, reuse}, arch_, handle_of(stream));
  }
  void gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
              ConstTensorView bias, const NormRope& epilogue, TensorView out,
              Stream stream) override {
    const InputProjection projection{&plan, &weight, bias, epilogue, out};
    project_heads(x, {&projection, 1}, stream);
  }
  void gemm_qkv(ConstTensorView x, std::span<const InputProjection> projections,
                Stream stream) override {
    const auto differs = [&](const InputProjection& p) {
      return p.weight->dtype != projections[0].weight->dtype ||
             p.weight->column_group != projections[0].weight->column_group;
    };
    if (projections.size() > cuda::kMaxProjections || std::ranges::any_of(projections, differs)) {
      Backend::gemm_qkv(x, projections, stream);
    } else if (!projections.empty()) {
      project_heads(x, projections, stream);
    }
  }
  void gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                     float steps_since_update, const BiasCacheView& cache, Stream stream) override {
    const DeviceScope scope(device_index_);
    DeviceGemmPlan spare;
    lists_of(plan, spare, [](DeviceGemmPlan&) {
    }).launch_o_update(plan, projection, steps_since_update, cache, target(stream));
  }
  void gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                       std::span<const float> coefficients, const BiasCacheView& cache,
                       Stream stream) override {
    const DeviceScope scope(device_index_);
    DeviceGemmPlan spare;
    lists_of(plan, spare, [](DeviceGemmPlan&) {
    }).launch_o_dispatch(plan, projection, coefficients, cache, target(stream));
  }

  void linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
              Activation activation, TensorView out, Stream stream) override {
    const DeviceScope scope(device_index_);
    if (weight.dtype == DType::kF32) {
      return cuda::launch_linear_f32(x, weight, bias, activation, out, handle_of(stream));
    }
    cuda::launch_linear(x, weight, bias, activation, out, target(stream));
  }
  void norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale, float eps,
                     TensorView out, Stream stream) override {
    const DeviceScope scope(device_index_);
    cuda::launch_norm_modulate(x, shift, scale, eps, out, handle_of(stream));
  }
  void gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                 Stream stream) override {
    const DeviceScope scope(device_index_);
    cuda::launch_gated_add(y, gate, residual, handle_of(stream));
  }
  void block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                    const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores,
                    Stream stream) override {
    const DeviceScope scope(device_index_);
    scorer_.run({q, k, q_grid, kv_grid}, options, scores, handle_of(stream));
  }
  void select_symbols(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options,
                      double ramp, SymbolWords& words, const ScoreViews& scores,
                      Stream stream) override {
    const DeviceScope scope(device_index_);
    lists_in<cuda::SymbolSelector>(words.backend_lists)
        .run(q, k, options, ramp, words, scores, handle_of(stream));
  }
  void forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                TensorView out, Stream stream) override {
    const DeviceScope scope(device_index_);
    cuda::launch_forecast(terms, coefficients, out, handle_of(stream));
  }
  void push_differences(ConstTensorView value, int order, float steps,
                        std::span<const TensorView> terms, Stream stream) override {
    const DeviceScope scope(device_index_);
    cuda::launch_push_differences(value, order, steps, terms, handle_of(stream));
  }

 private:
  void project_heads(ConstTensorView x, std::span<const InputProjection> projections,
                     Stream stream) {
    const DeviceScope scope(device_index_);
    DeviceGemmPlan spare[cuda::kMaxProjections];
    DeviceGemmPlan* lists[cuda::kMaxProjections];
    for (std::size_t i = 0; i < projections.size(); ++i) {
      lists[i] = &lists_of(*projections[i].plan, spare[i], [](DeviceGemmPlan&) {});
    }
    cuda::launch_heads(x, projections, {lists, projections.size()}, target(stream));
  }
  cuda::CutOptions cut_options() const { return {.num_sms = num_sms_}; }
  LaunchTarget target(Stream stream) const { return {arch_, num_sms_, handle_of(stream)}; }

  int device_index_, arch_, num_sms_;
  std::string description_;
  cuda::BlockScorer scorer_;
  EventTimer timer_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  cudaDeviceProp device;
  FO_CUDA(cudaGetDeviceProperties(&device, options.device_index));
  if (!has_kernels(device)) {
    FO_FAIL(kUnsupported, "make_backend: the cuda backend has no kernels for %s; it has for 9.0",
            describe(device).c_str());
  }
  return std::make_unique<CudaBackend>(options.device_index, device);
}

BackendProbe probe_cuda_backend() {
  int count = 0;
  cudaDeviceProp device;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
      cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    cudaGetLastError();
    return {false, "no NVIDIA GPU or driver"};
  }
  if (!has_kernels(device)) {
    return {false, "no kernels for " + describe(device) + "; there are for 9.0"};
  }
  return {true, describe(device)};
}

}  // namespace flashomni
