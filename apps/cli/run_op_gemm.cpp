// run_op_gemm.cpp -- `run-op gemm-q`, `gemm-o-update` and `gemm-o-dispatch`.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <utility>

#include "commands.h"
#include "flashomni/gemm.h"
#include "op_call.h"

namespace flashomni::cli {
namespace {

constexpr float kCanary = -7;

// The sequence of a projection: `text_offset` tokens that are not in the matrix, then its rows.
BlockGrid make_grid(const OpCall& call, index_t batch, index_t num_rows, std::vector<int> lengths) {
  const int offset = call.integer("text_offset", 0);
  if (offset < 0) throw UsageError("run-op: --set text_offset must not be negative");
  for (int& length : lengths) length += offset;
  const Segment segments[] = {{SegmentKind::kText, offset},
                              {SegmentKind::kImage, static_cast<int>(num_rows)}};
  return BlockGrid(call.integer("block_q", 128), static_cast<int>(batch), segments, lengths);
}

int num_heads(const OpCall& call) {
  const int heads = call.required_integer("heads");
  if (heads < 1) throw UsageError("run-op: --set heads must be at least 1");
  return heads;
}

int head_dim(index_t features, int heads, const char* tensor) {
  if (features % heads != 0) {
    throw UsageError("run-op: " + std::string(tensor) + " has " + std::to_string(features) +
                     " features, which --set heads=" + std::to_string(heads) + " does not divide");
  }
  return static_cast<int>(features / heads);
}

SparseSymbols make_symbols(const OpCall& call, const BlockGrid& grid, int heads,
                           const char* mask_name) {
  return SparseSymbols::from_masks(grid, grid, heads, call.mask(mask_name), {});
}

GemmPlan make_plan(const OpCall& call, const SparseSymbols& symbols, index_t num_rows,
                   const SparseSymbols* previous) {
  GemmPlan plan;
  call.backend().build_gemm_plan(symbols, call.integer("text_offset", 0),
                                 static_cast<int>(num_rows), previous, plan, {});
  return plan;
}

std::string term_name(const std::string& base, int order) {
  return order == 0 ? base : base + "_" + std::to_string(order);
}

// The operands of an output projection and the tensors they live in.
struct Projection {
  Tensor o, bias, mlp, out;
  PackedWeight weight;
  OutputProjection view() const { return {&weight, bias, o, mlp, out}; }
};

Projection make_projection(const OpCall& call, int heads) {
  Projection p;
  p.o = call.operand("o", 3);
  p.mlp = call.optional_operand("mlp", 3);
  head_dim(p.o.size(2), heads, "o");  // must divide
  p.weight = call.weight(/*column_group=*/0);
  p.out = call.filled({p.o.size(0), p.o.size(1), p.weight.out_features}, call.dtype(), kCanary);
  return p;
}

// The bias cache of a call: terms 0..order and the order usable in each row block.
struct BiasCache {
  int order = 0;
  Tensor terms[kMaxForecastOrder + 1], valid_order;
  BiasCacheView view() const {
    BiasCacheView view;
    view.order = order;
    for (int o = 0; o <= order; ++o) view.terms[o] = terms[o];
    view.valid_order = valid_order;
    return view;
  }
};

Layout order_layout(const GemmPlan& plan) { return {plan.batch, plan.num_q_blocks}; }

// Differences above a row block's order hold what was there before; say 0 instead.
void clear_unused_terms(const GemmPlan& plan, const std::uint8_t* orders, int order,
                        TensorView term) {
  const index_t width = term.size(2);
  for (const RowBlock& block : plan.row_blocks) {
    if (orders[block.batch * plan.num_q_blocks + block.q_block] >= order) continue;
    float* rows = term.as<float>() + (block.batch * term.size(1) + block.row) * width;
    std::fill_n(rows, block.num_rows * width, 0.0f);
  }
}

void save_cache(OpCall& call, const GemmPlan& plan, BiasCache cache) {
  call.save("bias_cache", std::move(cache.terms[0]));
  if (cache.order == 0) return;
  call.save("order", std::move(cache.valid_order));
  const auto* orders = call.saved().at("order").as<std::uint8_t>();
  for (int o = 1; o <= cache.order; ++o) {
    const std::string name = term_name("bias_cache", o);
    call.save(name, std::move(cache.terms[o]));
    clear_unused_terms(plan, orders, o, call.saved().at(name));
  }
}

}  // namespace

void run_gemm_q(OpCall& call) {
  const int heads = num_heads(call);
  const Tensor x = call.operand("x", 3), bias = call.optional_f32("bias", 1);
  const PackedWeight weight = call.weight(head_dim(call.layout_of("w", 2).sizes[0], heads, "w"));
  const BlockGrid grid = make_grid(call, x.size(0), x.size(1), call.lengths("seq_len"));
  const GemmPlan plan =
      make_plan(call, make_symbols(call, grid, heads, "cache"), x.size(1), nullptr);
  Tensor out =
      call.initial("out", {x.size(0), x.size(1), weight.out_features}, call.dtype(), kCanary);
  gemm_q(call.backend(), plan, x, weight, bias, NormRope{}, out);
  call.backend().synchronize({});
  call.save("out", std::move(out));
}

void run_gemm_o_update(OpCall& call) {
  const int heads = num_heads(call);
  Projection projection = make_projection(call, heads);
  projection.bias = call.optional_f32("bias", 1);
  const index_t num_rows = projection.o.size(1);
  const BlockGrid grid = make_grid(call, projection.o.size(0), num_rows, call.lengths("seq_len"));
  const SparseSymbols symbols = make_symbols(call, grid, heads, "cache");
  const SparseSymbols previous = make_symbols(call, grid, heads, "prev_cache");
  const bool has_previous = call.has("prev_bias_cache");
  const GemmPlan plan = make_plan(call, symbols, num_rows, has_previous ? &previous : nullptr);

  BiasCache cache;
  cache.order = call.integer("order", 0);
  if (cache.order < 0 || cache.order > kMaxForecastOrder) {
    throw UsageError("run-op: --set order must be 0, 1 or 2");
  }
  for (int o = 0; o <= cache.order; ++o) {
    cache.terms[o] = call.initial(term_name("prev_bias_cache", o), projection.out.view().layout,
                                  DType::kF32, o == 0 ? kCanary : 0);
  }
  const int previous_order = call.has("prev_bias_cache_1") ? 1 : 0;
  cache.valid_order = call.bytes("prev_order", order_layout(plan), previous_order, previous_order);
  const auto steps = static_cast<float>(call.number("steps_since_update", 1));
  gemm_o_update(call.backend(), plan, projection.view(), steps, cache.view());
  call.backend().synchronize({});
  call.save("out", std::move(projection.out));
  save_cache(call, plan, std::move(cache));
}

void run_gemm_o_dispatch(OpCall& call) {
  const int heads = num_heads(call);
  Projection projection = make_projection(call, heads);
  const index_t num_rows = projection.o.size(1);
  const BlockGrid grid = make_grid(call, projection.o.size(0), num_rows, call.lengths("seq_len"));
  const GemmPlan plan =
      make_plan(call, make_symbols(call, grid, heads, "cache"), num_rows, nullptr);

  BiasCache cache;
  while (cache.order < kMaxForecastOrder && call.has(term_name("bias_cache", cache.order + 1))) {
    ++cache.order;
  }
  for (int o = 0; o <= cache.order; ++o) {
    const std::string name = term_name("bias_cache", o);
    call.layout_of(name, 3);  // must be there
    cache.terms[o] = call.initial(name, projection.out.view().layout, DType::kF32, kCanary);
  }
  cache.valid_order = call.bytes("order", order_layout(plan), cache.order, cache.order);
  const double k = call.number("steps_since_update", 1);
  const float taylor[] = {1.0f, static_cast<float>(k), static_cast<float>(k * k / 2)};
  gemm_o_dispatch(call.backend(), plan, projection.view(),
                  {taylor, static_cast<std::size_t>(cache.order) + 1}, cache.view());
  call.backend().synchronize({});
  call.save("out", std::move(projection.out));
}

}  // namespace flashomni::cli
