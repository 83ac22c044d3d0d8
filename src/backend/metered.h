// metered.h -- a Backend that passes every call on to another one and counts what it cost.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "flashomni/backend.h"

namespace flashomni {

enum class OpKind : std::uint8_t { kAttention, kGemmQ, kGemmO, kLinear, kPolicy, kNorm, kOther };
inline constexpr int kNumOpKinds = 7;
std::string_view op_kind_name(OpKind kind);  // "attention", "gemm_q", ..., "other"

// Multiply-adds are those the plans leave to do, 0 for plans whose lists are on a device (but for
// updates of GEMM-O, which do everything); kPolicy is block scores, selections and plans, kOther
// copies and forecasts.
struct OpCost {
  double seconds = 0, macs = 0;
  std::int64_t calls = 0;
};

// Seconds are those of the calls or, of a backend that queues work, those between the moments at
// which its stream gets to a call and past it. Counting allocates nothing in the first case.
class MeteredBackend final : public Backend {
 public:
  explicit MeteredBackend(std::unique_ptr<Backend> backend)
      : backend_(std::move(backend)), timer_(backend_->device_timer()) {}

  OpCost cost(OpKind kind) const;  // waits for what was queued
  double macs(OpKind kind) const { return costs_[static_cast<std::size_t>(kind)].macs; }
  double macs() const;  // of all kinds
  void reset();

  std::string_view name() const override { return backend_->name(); }
  std::string description() const override { return backend_->description(); }
  Device device() const override { return backend_->device(); }
  Tensor allocate(DType dtype, Layout layout) override { return backend_->allocate(dtype, layout); }
  void synchronize(Stream stream) override { backend_->synchronize(stream); }
  DeviceTimer* device_timer() override { return timer_; }
  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override {
    return backend_->pack_weight(weight, dtype, column_group);
  }
  PackedWeight borrow_weight(ConstTensorView weight, int column_group) override {
    return backend_->borrow_weight(weight, column_group);
  }

  DType bias_cache_dtype(DType weight) const override { return backend_->bias_cache_dtype(weight); }

  void copy(ConstTensorView from, TensorView to, Stream stream) override;
  void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan,
                            Stream stream) override;
  void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                       const SparseSymbols* previous, GemmPlan& plan, Stream stream) override;
  void build_attention_plan_from(const SymbolWords& words, AttentionPlan& plan,
                                 Stream stream) override;
  void build_gemm_plan_from(const SymbolWords& words, int first_token, int num_tokens,
                            const SymbolWords* previous, GemmPlan& plan, Stream stream) override;
  void attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                 float scale, TensorView out, TensorView lse, Stream stream,
                 const AttentionReuse& reuse) override;
  void gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
              ConstTensorView bias, const NormRope& epilogue, TensorView out,
              Stream stream) override;
  void gemm_qkv(ConstTensorView x, std::span<const InputProjection> projections,
                Stream stream) override;
  void gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                     float steps_since_update, const BiasCacheView& cache, Stream stream) override;
  void gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                       std::span<const float> coefficients, const BiasCacheView& cache,
                       Stream stream) override;
  void linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
              Activation activation, TensorView out, Stream stream) override;
  void norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale, float eps,
                     TensorView out, Stream stream) override;
  void gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                 Stream stream) override;
  void block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                    const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores,
                    Stream stream) override;
  void select_symbols(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options,
                      double ramp, SymbolWords& words, const ScoreViews& scores,
                      Stream stream) override;
  void forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                TensorView out, Stream stream) override;
  void push_differences(ConstTensorView value, int order, float steps,
                        std::span<const TensorView> terms, Stream stream) override;

 private:
  class Meter;
  struct Queued {  // a call between two marks of the timer
    OpKind kind;
    int from, to;
  };

  std::unique_ptr<Backend> backend_;
  DeviceTimer* timer_;
  std::array<OpCost, kNumOpKinds> costs_;
  std::vector<Queued> queued_;  // since the last reset()
};

}  // namespace flashomni
