// run_op_attention.cpp -- `run-op attention` and `run-op policy`.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "commands.h"
#include "flashomni/attention.h"
#include "flashomni/error.h"
#include "flashomni/policy.h"
#include "op_call.h"

namespace flashomni::cli {
namespace {

// What rows that are not computed hold when the caller gives no `out`.
constexpr float kCanary = -7;

int size(const Tensor& tensor, int axis) { return static_cast<int>(tensor.size(axis)); }

TextPosition text_position(const OpCall& call) {
  const std::string name = call.text("text_position", "none");
  if (name == "none") return TextPosition::kNone;
  if (name == "first") return TextPosition::kFirst;
  if (name == "last") return TextPosition::kLast;
  throw UsageError("run-op: --set text_position=" + name + " is not first, last or none");
}

// The blocks of a token axis of `num_tokens`, from the settings.
BlockGrid make_grid(const OpCall& call, const char* block_name, int batch, int num_tokens,
                    const std::vector<int>& lengths = {}) {
  const auto segments =
      make_segments(num_tokens, call.integer("text_tokens", 0), text_position(call));
  return BlockGrid(call.integer(block_name, 128), batch, segments, lengths);
}

// The optional tensors `reuse`, `reuse_1`, `reuse_2`: values and differences of the last update, as
// f32, from which rows that are not computed are extrapolated.
struct Reuse {
  std::vector<Tensor> terms;
  std::vector<ConstTensorView> views;
  std::vector<float> coefficients;
  AttentionReuse view() const { return {views, coefficients}; }
};

Reuse make_reuse(const OpCall& call, const Layout& layout) {
  Reuse reuse;
  const double k = call.number("steps_since_update", 1);
  const char* missing = nullptr;
  for (const char* name : {"reuse", "reuse_1", "reuse_2"}) {
    if (!call.has(name)) {
      missing = missing ? missing : name;
      continue;
    }
    if (missing) {
      throw Error(ErrorCode::kInvalidArgument,
                  std::string("run-op attention: the input has ") + name + " without " + missing);
    }
    const double order = static_cast<double>(reuse.terms.size());
    reuse.coefficients.push_back(static_cast<float>(std::pow(k, order) / std::tgamma(order + 1)));
    reuse.terms.push_back(call.initial(name, layout, DType::kF32, 0));
    reuse.views.push_back(reuse.terms.back());
  }
  return reuse;
}

}  // namespace

void run_attention(OpCall& call) {
  const Tensor q = call.operand("q", 4), k = call.operand("k", 4), v = call.operand("v", 4);
  const int batch = size(q, 0), num_heads = size(q, 2);
  const auto symbols = SparseSymbols::from_masks(
      make_grid(call, "block_q", batch, size(q, 1), call.lengths("seq_len")),
      make_grid(call, "block_kv", batch, size(k, 1), call.lengths("kv_len")), num_heads,
      call.mask("cache"), call.mask("skip"));
  AttentionPlan plan;
  call.backend().build_attention_plan(symbols, plan, {});

  const double scale = call.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  Tensor out = call.initial("out", q.view().layout, call.dtype(), kCanary);
  Tensor lse = call.filled({q.size(0), q.size(2), q.size(1)}, DType::kF32,
                           std::numeric_limits<float>::quiet_NaN());
  const Reuse reuse = make_reuse(call, out.view().layout);
  attention(call.backend(), plan, q, k, v, static_cast<float>(scale), out, lse, {}, reuse.view());
  call.backend().synchronize({});
  call.save("out", std::move(out));
  call.save("lse", std::move(lse));
}

void run_policy(OpCall& call) {
  const Tensor q = call.operand("q", 4), k = call.operand("k", 4);
  FlashOmniOptions options;
  options.tau_q = call.number("tau_q", options.tau_q);
  options.tau_kv = call.number("tau_kv", options.tau_kv);
  options.keep_text_kv = call.integer("keep_text_kv", 1) != 0;
  if (call.has_setting("sim_threshold")) options.sim_threshold = call.number("sim_threshold", 0);
  const std::string scope = call.text("scope", "head");
  if (scope != "head" && scope != "layer") {
    throw UsageError("run-op: --set scope=" + scope + " is not head or layer");
  }
  options.scope = scope == "head" ? PolicyScope::kHead : PolicyScope::kLayer;

  Backend& backend = call.backend();
  SymbolWords words =
      make_symbol_words(backend, make_grid(call, "block_q", size(q, 0), size(q, 1)),
                        make_grid(call, "block_kv", size(k, 0), size(k, 1)), size(q, 2));
  const index_t batch = q.size(0), heads = q.size(2);
  const index_t q_blocks = words.q_grid.num_blocks(), kv_blocks = words.kv_grid.num_blocks();
  Tensor c = backend.allocate(DType::kF32, {batch, heads, q_blocks});
  Tensor g = backend.allocate(DType::kF32, {batch, heads, q_blocks});
  backend.select_symbols(q, k, options, /*ramp=*/1, words, {c, g}, {});

  Tensor cache = Tensor::host(DType::kU8, {batch, heads, q_blocks});
  Tensor skip = Tensor::host(DType::kU8, {batch, heads, q_blocks, kv_blocks});
  download_symbols(backend, words)
      .to_masks({cache.as<std::uint8_t>(), static_cast<std::size_t>(cache.bytes())},
                {skip.as<std::uint8_t>(), static_cast<std::size_t>(skip.bytes())});
  call.save("cache", std::move(cache));
  call.save("skip", std::move(skip));
  call.save("c_score", std::move(c));
  call.save("g_score", std::move(g));
}

}  // namespace flashomni::cli
