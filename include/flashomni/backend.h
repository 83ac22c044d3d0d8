// backend.h -- the one interface between the engine and the code that computes.
//
// Engine, models and operators (attention.h, gemm.h) talk to a Backend; a backend is a folder under
// src/backend and one row in src/backend/registry.cpp. Arguments are trusted here: outside callers
// enter through the checked operators in attention.h and gemm.h.
// A Backend owns its threads (or streams) and scratch: use one per thread of control.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashomni/device_timer.h"
#include "flashomni/plan.h"
#include "flashomni/projection.h"
#include "flashomni/selection.h"
#include "flashomni/tensor.h"

namespace flashomni {

// What rows of cached query blocks become: the sum over o of coefficients[o] * terms[o], at most
// kMaxForecastOrder + 1 of them. No terms: the rows stay as they are.
struct AttentionReuse {
  std::span<const ConstTensorView> terms;  // of out's shape; all f32, or all of out's dtype
  std::span<const float> coefficients;     // one a term
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;    // "reference", "cpu", "cuda"
  virtual std::string description() const = 0;  // one line for people: ISA, threads, device
  virtual Device device() const = 0;

  // Uninitialised device memory, aligned to at least 64 bytes.
  virtual Tensor allocate(DType dtype, Layout layout) = 0;
  // Between host and device or within the device; dtypes and shapes agree, both contiguous.
  virtual void copy(ConstTensorView from, TensorView to, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;
  // nullptr where a call returns when its work is done, so that a clock of the host tells its time.
  virtual DeviceTimer* device_timer() { return nullptr; }

  // `weight` [out, in] f32, bf16 or f16 in host memory. `column_group` > 0 lets gemm_q address
  // groups of that many output features.
  virtual PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) = 0;
  // The same for a weight on the backend's device, rows of stride 1, seen without a copy: `weight`
  // must outlive the result. Empty storage if the kernels read another order.
  virtual PackedWeight borrow_weight(ConstTensorView /*weight*/, int /*column_group*/) {
    return {};
  }

  // What the terms of a bias cache are best kept in, for a weight of this dtype. Sums and
  // differences are formed in fp32 whatever they are kept in.
  virtual DType bias_cache_dtype(DType) const { return DType::kF32; }

  virtual void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan,
                                    Stream stream) = 0;
  virtual void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                               const SparseSymbols* previous, GemmPlan& plan, Stream stream) = 0;
  // The same from symbols in this backend's memory. Where the backend builds the lists there too,
  // it waits for nothing and the plan has `lists_on_device`; the default reads the words back,
  // which waits, and builds as above. The lists are those of `words` when the stream gets there.
  virtual void build_attention_plan_from(const SymbolWords& words, AttentionPlan& plan,
                                         Stream stream);
  virtual void build_gemm_plan_from(const SymbolWords& words, int first_token, int num_tokens,
                                    const SymbolWords* previous, GemmPlan& plan, Stream stream);

  // The contract of flashomni::attention (attention.h).
  virtual void attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
                         ConstTensorView v, float scale, TensorView out, TensorView lse,
                         Stream stream, const AttentionReuse& reuse = {}) = 0;
  // The contracts of gemm.h.
  virtual void gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
                      ConstTensorView bias, const NormRope& epilogue, TensorView out,
                      Stream stream) = 0;
  // gemm_q() of each projection over one x; a backend may do them in one pass over x.
  virtual void gemm_qkv(ConstTensorView x, std::span<const InputProjection> projections,
                        Stream stream) {
    for (const InputProjection& p : projections) {
      gemm_q(*p.plan, x, *p.weight, p.bias, p.epilogue, p.out, stream);
    }
  }
  virtual void gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                             float steps_since_update, const BiasCacheView& cache,
                             Stream stream) = 0;
  virtual void gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                               std::span<const float> coefficients, const BiasCacheView& cache,
                               Stream stream) = 0;

  // out[r, :] = activation(x[r, :] W^T + bias).  x [rows, in], bias [out] f32 or {}; the dtype of
  // x is the weight's; out f32 or the weight's dtype.
  virtual void linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                      Activation activation, TensorView out, Stream stream) = 0;
  // out = layer_norm(x) * (1 + scale) + shift, no affine of its own.
  // x [rows, dim] f32; shift, scale [dim] f32; out [rows, dim] f32, bf16 or f16.
  virtual void norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale,
                             float eps, TensorView out, Stream stream) = 0;
  // residual[r, :] += gate * y[r, :].  residual [rows, dim] f32, gate [dim] f32 or {} = 1.
  virtual void gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                         Stream stream) = 0;

  // Pools Q and K [batch, seq_len, heads, head_dim] over the valid tokens of each block in fp32.
  // With grouped K heads, head h of Q meets K head h / (num_heads / num_kv_heads).
  virtual void block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                            const BlockGrid& kv_grid, const BlockScoreOptions& options,
                            BlockScores& scores, Stream stream) = 0;
  // Writes `words` as select_flashomni (policy.h) chooses for Q and K, which are as above; `ramp`
  // multiplies both thresholds. On a device every sum is fp32, and nothing is waited for. The first
  // call on `words` allocates; those after it, of the same shapes, can be captured in a graph. The
  // default measures with block_scores and selects on the host.
  virtual void select_symbols(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options,
                              double ramp, SymbolWords& words, const ScoreViews& scores,
                              Stream stream);
  // out = sum over o of coefficients[o] * terms[o]; terms and out are contiguous and of one shape,
  // terms f32, out f32, bf16 or f16.
  virtual void forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                        TensorView out, Stream stream) = 0;
  // terms[0] <- value, terms[o + 1] <- (new terms[o] - old terms[o]) / steps, for o + 1 <= order:
  // the finite differences of TaylorSeer. `order` counts the terms that will be valid afterwards.
  virtual void push_differences(ConstTensorView value, int order, float steps,
                                std::span<const TensorView> terms, Stream stream) = 0;
};

// Runs task(argument, i) for every i in [0, count) and returns when all are done.
// Lets a host program lend its own threads; see BackendOptions::executor.
struct Executor {
  void* context = nullptr;
  int num_threads = 0;
  void (*run)(void* context, index_t count, void (*task)(void* argument, index_t i, int worker),
              void* argument) = nullptr;
};

struct BackendOptions {
  int num_threads = 0;                 // 0: one per available core
  const Executor* executor = nullptr;  // used instead of own threads; outlives the backend
  // cpu backend: which kernels to use, "auto" or one of cpu_kernel_sets() (tests, comparisons).
  std::string cpu_kernels = "auto";
  int device_index = 0;
};

struct BackendInfo {
  std::string_view name;
  bool available = false;
  std::string detail;  // ISA or GPU; when unavailable, why
};

// The kernel sets of the cpu backend that run on this machine, best last.
//   portable       what the compiler's default flags allow: plain C++ on x86, NEON on Arm
//   avx2, avx512   f32 products; bf16 and f16 operands are widened
//   avx512_bf16    as avx512, with bf16 products by vdpbf16ps
//   amx_bf16       as avx512, with bf16 products by AMX tiles
std::vector<std::string> cpu_kernel_sets();
// GFLOP/s of the multiply instruction that a kernel set ("auto" or one of the above) uses for
// operands of `dtype`, on registers alone and `num_threads` threads: what a kernel that never
// waited would reach. The median of 15 samples that take `seconds` together: 0.1 for a figure of
// the machine, 0.002 right before and after a kernel for what the machine gave it just then.
double measure_cpu_peak(const std::string& kernel_set, DType dtype, int num_threads,
                        double seconds = 0.1);

// `name` is "auto" (best available), or a name from list_backends().
// Throws kInvalidArgument for an unknown name, kUnsupported if it cannot run on this machine.
std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options = {});
std::vector<BackendInfo> list_backends();

}  // namespace flashomni
