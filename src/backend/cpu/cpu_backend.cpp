#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <vector>

#include "backend/cpu/attention.h"
#include "backend/cpu/block_scores.h"
#include "backend/cpu/cpu_features.h"
#include "backend/cpu/elementwise.h"
#include "backend/cpu/gemm.h"
#include "core/check.h"

namespace flashomni {
namespace {

// What a name of cpu_kernel_sets() stands for.
struct KernelSet {
  std::string_view name;
  cpu::SimdTarget target;
  const cpu::ProductKernels* (*bf16)();  // nullptr: bf16 is widened to f32
  bool (*is_usable)();
  std::string_view bf16_by;
};

constexpr KernelSet kKernelSets[] = {
    {"portable", cpu::SimdTarget::kPortable, nullptr, [] { return true; }, "widened to f32"},
    {"avx2", cpu::SimdTarget::kAvx2, nullptr, cpu::has_avx2, "widened to f32"},
    {"avx512", cpu::SimdTarget::kAvx512, nullptr, cpu::has_avx512, "widened to f32"},
    {"avx512_bf16", cpu::SimdTarget::kAvx512, cpu::avx512_bf16_products, cpu::has_avx512_bf16,
     "by vdpbf16ps"},
    {"amx_bf16", cpu::SimdTarget::kAvx512, cpu::amx_bf16_products, cpu::enable_amx_bf16,
     "by AMX tiles"},
};

bool is_usable(const KernelSet& set) { return set.is_usable(); }

// The last usable one, passing over avx512_bf16 where widening to f32 is as fast.
const KernelSet& best_kernel_set() {
  const KernelSet* best = &kKernelSets[0];
  for (const KernelSet& set : kKernelSets) {
    if (set.name == "avx512_bf16" && !cpu::avx512_bf16_is_fast()) continue;
    if (is_usable(set)) best = &set;
  }
  return *best;
}

const KernelSet& find_kernel_set(const std::string& name) {
  if (name == "auto") return best_kernel_set();
  std::string usable;
  for (const KernelSet& set : kKernelSets) {
    if (!is_usable(set)) continue;
    if (set.name == name) return set;
    usable += ", " + std::string(set.name);
  }
  FO_FAIL(kUnsupported,
          "make_backend: cpu_kernels '%s' cannot run on this machine, expected auto%s",
          name.c_str(), usable.c_str());
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelSet& set, const BackendOptions& options)
      : set_(set), context_(options.num_threads, options.executor) {
    context_.rows = &cpu::row_kernels(set.target);
    context_.f32.operand = DType::kF32;
    context_.f32.panel = cpu::f32_panel(set.target);
    context_.f32.attention = cpu::f32_attention(set.target);
    context_.f32.peak_loop = cpu::f32_peak_loop(set.target);
    if (set.bf16) context_.bf16 = set.bf16();
  }

  std::string_view name() const override { return "cpu"; }
  std::string description() const override {
    return format("%s kernels, bf16 %s, %d thread%s", std::string(set_.name).c_str(),
                  std::string(set_.bf16_by).c_str(), context_.pool.num_threads(),
                  context_.pool.num_threads() == 1 ? "" : "s");
  }
  Device device() const override { return {}; }

  Tensor allocate(DType dtype, Layout layout) override { return Tensor::host(dtype, layout); }
  void copy(ConstTensorView from, TensorView to, Stream) override {
    const index_t bytes = to.layout.num_elements() * size_in_bytes(to.dtype);
    if (bytes > 0) std::memcpy(to.data, from.data, static_cast<std::size_t>(bytes));
  }
  void synchronize(Stream) override {}
  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override {
    return cpu::pack_weight(context_, weight, dtype, column_group);
  }

  void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan, Stream) override {
    flashomni::build_attention_plan(symbols, plan);
  }
  void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                       const SparseSymbols* previous, GemmPlan& plan, Stream) override {
    flashomni::build_gemm_plan(symbols, first_token, num_tokens, previous, plan);
  }

  void attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                 float scale, TensorView out, TensorView lse, Stream,
                 const AttentionReuse& reuse) override {
    cpu::attention(context_, plan, q, k, v, scale, out, lse);
    cpu::reuse_cached(context_, plan, reuse, out);
  }
  void gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
              ConstTensorView bias, const NormRope& epilogue, TensorView out, Stream) override {
    cpu::gemm_q(context_, plan, x, weight, bias, epilogue, out);
  }
  void gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                     float steps_since_update, const BiasCacheView& cache, Stream) override {
    cpu::gemm_o_update(context_, plan, projection, steps_since_update, cache);
  }
  void gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                       std::span<const float> coefficients, const BiasCacheView& cache,
                       Stream) override {
    cpu::gemm_o_dispatch(context_, plan, projection, coefficients, cache);
  }

  void linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
              Activation activation, TensorView out, Stream) override {
    cpu::linear(context_, x, weight, bias, activation, out);
  }
  void norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale, float eps,
                     TensorView out, Stream) override {
    cpu::norm_modulate(context_, x, shift, scale, eps, out);
  }
  void gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual, Stream) override {
    cpu::gated_add(context_, y, gate, residual);
  }

  void block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                    const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores,
                    Stream) override {
    cpu::block_scores(context_, q, k, q_grid, kv_grid, options, scores);
  }
  void forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                TensorView out, Stream) override {
    cpu::forecast(context_, terms, coefficients, out);
  }
  void push_differences(ConstTensorView value, int order, float steps,
                        std::span<const TensorView> terms, Stream) override {
    cpu::push_differences(context_, value, order, steps, terms);
  }

 private:
  const KernelSet& set_;
  cpu::Context context_;
};

}  // namespace

std::vector<std::string> cpu_kernel_sets() {
  std::vector<std::string> names;
  for (const KernelSet& set : kKernelSets) {
    if (is_usable(set)) names.emplace_back(set.name);
  }
  return names;
}

double measure_cpu_peak(const std::string& kernel_set, DType dtype, int num_threads,
                        double seconds) {
  const KernelSet& set = find_kernel_set(kernel_set);
  const cpu::PeakLoop loop =
      dtype == DType::kBF16 && set.bf16 ? set.bf16()->peak_loop : cpu::f32_peak_loop(set.target);
  // Each thread by its own processor time, which a busy machine does not lengthen.
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  cpu::ThreadPool pool(num_threads, nullptr);
  constexpr std::size_t kSamples = 15;
  std::vector<double> samples(static_cast<std::size_t>(pool.num_threads()) * kSamples);
  pool.parallel_for(pool.num_threads(), [&](index_t thread, int) {
    for (std::size_t n = 0; n < kSamples; ++n) {
      double operations = 0;
      const double start = now(), end = start + seconds / kSamples;
      while (now() < end) operations += loop(20000);
      samples[static_cast<std::size_t>(thread) * kSamples + n] = operations / (now() - start);
    }
  });
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2] * pool.num_threads() * 1e-9;
}

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(find_kernel_set(options.cpu_kernels), options);
}

BackendProbe probe_cpu_backend() {
  const KernelSet& set = best_kernel_set();
  return {true, format("%s kernels, bf16 %s", std::string(set.name).c_str(),
                       std::string(set.bf16_by).c_str())};
}

}  // namespace flashomni
