// metered.cpp -- a Backend that passes every call on to another one and counts what it cost.
// SPDX-License-Identifier: Apache-2.0
#include "backend/metered.h"

#include <chrono>

#include "flashomni/error.h"

namespace flashomni {

std::string_view op_kind_name(OpKind kind) {
  constexpr std::array<std::string_view, kNumOpKinds> kNames = {
      "attention", "gemm_q", "gemm_o", "linear", "policy", "norm", "other"};
  return kNames[static_cast<std::size_t>(kind)];
}

// Charges the time of its own life, or what it puts on the stream meanwhile.
class MeteredBackend::Meter {
 public:
  Meter(MeteredBackend& owner, OpKind kind, Stream stream, double macs = 0)
      : owner_(owner), kind_(kind), stream_(stream) {
    OpCost& cost = owner.costs_[static_cast<std::size_t>(kind)];
    cost.macs += macs;
    ++cost.calls;
    if (owner.timer_) from_ = owner.timer_->mark(stream);
  }
  ~Meter() {
    if (owner_.timer_) {
      try {
        owner_.queued_.push_back({kind_, from_, owner_.timer_->mark(stream_)});
      } catch (const Error&) {  // the device failed: whoever waits for it next is told
      }
    } else {
      owner_.costs_[static_cast<std::size_t>(kind_)].seconds +=
          std::chrono::duration<double>(Clock::now() - start_).count();
    }
  }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  MeteredBackend& owner_;
  const OpKind kind_;
  const Stream stream_;
  int from_ = 0;
  const Clock::time_point start_ = Clock::now();
};

OpCost MeteredBackend::cost(OpKind kind) const {
  OpCost cost = costs_[static_cast<std::size_t>(kind)];
  for (const Queued& call : queued_) {
    if (call.kind == kind) cost.seconds += timer_->seconds(call.from, call.to);
  }
  return cost;
}

void MeteredBackend::reset() {
  costs_ = {};
  queued_.clear();
  if (timer_) timer_->reset();
}

namespace {

double product(index_t a, index_t b, index_t c) {
  return static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c);
}

double gemm_q_macs(const GemmPlan& plan, const PackedWeight& weight) {
  return product(plan.live_rows, weight.out_features / plan.num_heads, weight.in_features);
}

// `rows` counts (row, head) pairs of the attention part; the MLP part is always whole.
double gemm_o_macs(const OutputProjection& projection, std::int64_t rows, int num_heads) {
  const index_t out_features = projection.weight->out_features;
  const double heads = product(rows, projection.o.size(2) / num_heads, out_features);
  const ConstTensorView& mlp = projection.mlp;
  return mlp ? heads + product(mlp.size(0) * mlp.size(1), mlp.size(2), out_features) : heads;
}

// Of the map between pooled blocks.
double pooled_macs(ConstTensorView q, const BlockGrid& q_grid, const BlockGrid& kv_grid) {
  return product(q_grid.num_blocks(), kv_grid.num_blocks(), q.size(0) * q.size(2) * q.size(3));
}

}  // namespace

double MeteredBackend::macs() const {
  double sum = 0;
  for (const OpCost& cost : costs_) sum += cost.macs;
  return sum;
}

void MeteredBackend::copy(ConstTensorView from, TensorView to, Stream stream) {
  const Meter meter(*this, OpKind::kOther, stream);
  backend_->copy(from, to, stream);
}

void MeteredBackend::build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan,
                                          Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream);
  backend_->build_attention_plan(symbols, plan, stream);
}

void MeteredBackend::build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                                     const SparseSymbols* previous, GemmPlan& plan, Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream);
  backend_->build_gemm_plan(symbols, first_token, num_tokens, previous, plan, stream);
}

void MeteredBackend::build_attention_plan_from(const SymbolWords& words, AttentionPlan& plan,
                                               Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream);
  backend_->build_attention_plan_from(words, plan, stream);
}

void MeteredBackend::build_gemm_plan_from(const SymbolWords& words, int first_token, int num_tokens,
                                          const SymbolWords* previous, GemmPlan& plan,
                                          Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream);
  backend_->build_gemm_plan_from(words, first_token, num_tokens, previous, plan, stream);
}

void MeteredBackend::attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
                               ConstTensorView v, float scale, TensorView out, TensorView lse,
                               Stream stream, const AttentionReuse& reuse) {
  // Two products for a pair of tokens: q k, and p v.
  const Meter meter(*this, OpKind::kAttention, stream,
                    product(plan.stats.live_pairs, q.size(3), 2));
  backend_->attention(plan, q, k, v, scale, out, lse, stream, reuse);
}

void MeteredBackend::gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
                            ConstTensorView bias, const NormRope& epilogue, TensorView out,
                            Stream stream) {
  const Meter meter(*this, OpKind::kGemmQ, stream, gemm_q_macs(plan, weight));
  backend_->gemm_q(plan, x, weight, bias, epilogue, out, stream);
}

void MeteredBackend::gemm_qkv(ConstTensorView x, std::span<const InputProjection> projections,
                              Stream stream) {
  double macs = 0;
  for (const InputProjection& p : projections) macs += gemm_q_macs(*p.plan, *p.weight);
  const Meter meter(*this, OpKind::kGemmQ, stream, macs);
  backend_->gemm_qkv(x, projections, stream);
}

void MeteredBackend::gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                                   float steps_since_update, const BiasCacheView& cache,
                                   Stream stream) {
  const Meter meter(*this, OpKind::kGemmO, stream,
                    gemm_o_macs(projection, plan.total_rows, plan.num_heads));
  backend_->gemm_o_update(plan, projection, steps_since_update, cache, stream);
}

void MeteredBackend::gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                                     std::span<const float> coefficients,
                                     const BiasCacheView& cache, Stream stream) {
  const Meter meter(*this, OpKind::kGemmO, stream,
                    gemm_o_macs(projection, plan.live_rows, plan.num_heads));
  backend_->gemm_o_dispatch(plan, projection, coefficients, cache, stream);
}

void MeteredBackend::linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                            Activation activation, TensorView out, Stream stream) {
  const Meter meter(*this, OpKind::kLinear, stream,
                    product(x.size(0), weight.out_features, weight.in_features));
  backend_->linear(x, weight, bias, activation, out, stream);
}

void MeteredBackend::norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale,
                                   float eps, TensorView out, Stream stream) {
  const Meter meter(*this, OpKind::kNorm, stream);
  backend_->norm_modulate(x, shift, scale, eps, out, stream);
}

void MeteredBackend::gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                               Stream stream) {
  const Meter meter(*this, OpKind::kNorm, stream);
  backend_->gated_add(y, gate, residual, stream);
}

void MeteredBackend::block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                                  const BlockGrid& kv_grid, const BlockScoreOptions& options,
                                  BlockScores& scores, Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream, pooled_macs(q, q_grid, kv_grid));
  backend_->block_scores(q, k, q_grid, kv_grid, options, scores, stream);
}

void MeteredBackend::select_symbols(ConstTensorView q, ConstTensorView k,
                                    const FlashOmniOptions& options, double ramp,
                                    SymbolWords& words, const ScoreViews& scores, Stream stream) {
  const Meter meter(*this, OpKind::kPolicy, stream, pooled_macs(q, words.q_grid, words.kv_grid));
  backend_->select_symbols(q, k, options, ramp, words, scores, stream);
}

void MeteredBackend::forecast(std::span<const TensorView> terms,
                              std::span<const float> coefficients, TensorView out, Stream stream) {
  const Meter meter(*this, OpKind::kOther, stream);
  backend_->forecast(terms, coefficients, out, stream);
}

void MeteredBackend::push_differences(ConstTensorView value, int order, float steps,
                                      std::span<const TensorView> terms, Stream stream) {
  const Meter meter(*this, OpKind::kOther, stream);
  backend_->push_differences(value, order, steps, terms, stream);
}

}  // namespace flashomni
