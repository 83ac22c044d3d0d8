// idle_backend.h -- a backend that plans but computes nothing, and counts what it is asked for.
#pragma once

#include <cstring>

#include "flashomni/backend.h"

namespace flashomni::test {

struct Calls {
  int gemm_q = 0, attention = 0, update = 0, dispatch = 0, scores = 0, forecast = 0, push = 0;
  int select = 0, plans_from_words = 0;
  bool operator==(const Calls&) const = default;
};

class IdleBackend : public Backend {
 public:
  Calls calls;
  DeviceTimer* timer = nullptr;

  std::string_view name() const override { return "idle"; }
  std::string description() const override { return "computes nothing"; }
  Device device() const override { return {}; }
  Tensor allocate(DType dtype, Layout layout) override { return Tensor::host(dtype, layout); }
  void copy(ConstTensorView from, TensorView to, Stream) override {
    std::memcpy(to.data, from.data,
                static_cast<std::size_t>(to.layout.num_elements() * size_in_bytes(to.dtype)));
  }
  void synchronize(Stream) override {}
  DeviceTimer* device_timer() override { return timer; }
  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override {
    return {{}, weight.size(0), weight.size(1), dtype, column_group};
  }
  void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan, Stream) override {
    flashomni::build_attention_plan(symbols, plan);
  }
  void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                       const SparseSymbols* previous, GemmPlan& plan, Stream) override {
    flashomni::build_gemm_plan(symbols, first_token, num_tokens, previous, plan);
  }
  void attention(const AttentionPlan&, ConstTensorView, ConstTensorView, ConstTensorView, float,
                 TensorView, TensorView, Stream, const AttentionReuse&) override {
    ++calls.attention;
  }
  void gemm_q(const GemmPlan&, ConstTensorView, const PackedWeight&, ConstTensorView,
              const NormRope&, TensorView, Stream) override {
    ++calls.gemm_q;
  }
  void gemm_o_update(const GemmPlan&, const OutputProjection&, float, const BiasCacheView&,
                     Stream) override {
    ++calls.update;
  }
  void gemm_o_dispatch(const GemmPlan&, const OutputProjection&, std::span<const float>,
                       const BiasCacheView&, Stream) override {
    ++calls.dispatch;
  }
  void linear(ConstTensorView, const PackedWeight&, ConstTensorView, Activation, TensorView,
              Stream) override {}
  void norm_modulate(ConstTensorView, ConstTensorView, ConstTensorView, float, TensorView,
                     Stream) override {}
  void gated_add(ConstTensorView, ConstTensorView, TensorView, Stream) override {}
  void block_scores(ConstTensorView, ConstTensorView, const BlockGrid&, const BlockGrid&,
                    const BlockScoreOptions&, BlockScores&, Stream) override {
    ++calls.scores;
  }
  // Selects nothing.
  void select_symbols(ConstTensorView, ConstTensorView, const FlashOmniOptions&, double,
                      SymbolWords& words, const ScoreViews&, Stream) override {
    ++calls.select;
    if (words.cache) {
      upload_symbols(*this, SparseSymbols(words.q_grid, words.kv_grid, words.num_heads), words);
    }
  }
  void build_attention_plan_from(const SymbolWords&, AttentionPlan&, Stream) override {
    ++calls.plans_from_words;
  }
  void build_gemm_plan_from(const SymbolWords&, int, int, const SymbolWords*, GemmPlan&,
                            Stream) override {
    ++calls.plans_from_words;
  }
  void forecast(std::span<const TensorView>, std::span<const float>, TensorView, Stream) override {
    ++calls.forecast;
  }
  void push_differences(ConstTensorView, int, float, std::span<const TensorView>, Stream) override {
    ++calls.push;
  }
};

}  // namespace flashomni::test
