// joint_attention.cpp -- the operator calls of one joint attention layer, and the buffers between.
// SPDX-License-Identifier: Apache-2.0
#include "engine/joint_attention.h"

#include <cmath>

namespace flashomni {
namespace {

// [rows, columns] as a batch of one: [1, rows, columns].
template <typename View>
View as_batch(View view) {
  if (!view) return view;
  Layout layout;
  layout.rank = view.rank() + 1;
  layout.sizes[0] = 1;
  layout.strides[0] = view.size(0) * view.stride(0);
  for (int axis = 0; axis < view.rank(); ++axis) {
    layout.sizes[axis + 1] = view.size(axis);
    layout.strides[axis + 1] = view.stride(axis);
  }
  view.layout = layout;
  return view;
}

ConstTensorView rows_or_none(ConstTensorView table, const AttentionStream& stream) {
  if (!table) return table;
  return table.slice(0, stream.first_token, stream.first_token + stream.num_tokens);
}

}  // namespace

JointAttention::JointAttention(Backend& backend, const SequenceShape& shape,
                               const SparseSymbols& all_live)
    : backend_(backend),
      num_heads_(shape.num_heads),
      head_dim_(shape.head_dim),
      all_live_(all_live) {
  const Layout layout{1, all_live.q_grid().num_tokens(), num_heads_, head_dim_};
  for (Tensor* tensor : {&q_, &k_, &v_, &o_}) *tensor = backend.allocate(shape.dtype, layout);
  backend.build_attention_plan(all_live, dense_plan_, {});
}

const GemmPlan& JointAttention::dense_plan(const AttentionStream& stream) {
  const auto [entry, is_new] = dense_gemms_.try_emplace({stream.first_token, stream.num_tokens});
  if (is_new) {
    backend_.build_gemm_plan(all_live_, stream.first_token, stream.num_tokens, nullptr,
                             entry->second, {});
  }
  return entry->second;
}

TensorView JointAttention::rows(const Tensor& tensor, const AttentionStream& stream) const {
  return tensor.view()
      .reshape({1, tensor.size(1), static_cast<index_t>(num_heads_) * head_dim_})
      .slice(1, stream.first_token, stream.first_token + stream.num_tokens);
}

void JointAttention::project(const AttentionStream& stream, const RopeTables& rope,
                             const GemmPlan& q_plan, const GemmPlan& kv_plan) {
  const StreamWeights& weights = *stream.weights;
  const ConstTensorView x = as_batch(stream.x);
  const ConstTensorView cos = rows_or_none(rope.cos, stream);
  const ConstTensorView sin = rows_or_none(rope.sin, stream);
  const NormRope q_epilogue{.norm_weight = weights.q_norm, .cos = cos, .sin = sin};
  const NormRope k_epilogue{.norm_weight = weights.k_norm, .cos = cos, .sin = sin};
  const InputProjection projections[] = {
      {&q_plan, weights.q, weights.q_bias, q_epilogue, rows(q_, stream)},
      {&kv_plan, weights.k, weights.k_bias, k_epilogue, rows(k_, stream)},
      {&kv_plan, weights.v, weights.v_bias, {}, rows(v_, stream)}};
  backend_.gemm_qkv(x, projections, {});
}

void JointAttention::attend(const AttentionPlan& plan) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  backend_.attention(plan, q_, k_, v_, scale, o_, {}, {});
}

void JointAttention::score(const BlockScoreOptions& options, BlockScores& scores) {
  backend_.block_scores(q_, k_, all_live_.q_grid(), all_live_.kv_grid(), options, scores, {});
}

SparseSymbols JointAttention::select(const FlashOmniOptions& options, double ramp) {
  if (!words_.cache) {
    words_ = make_symbol_words(backend_, all_live_.q_grid(), all_live_.kv_grid(), num_heads_);
  }
  backend_.select_symbols(q_, k_, options, ramp, words_, {}, {});
  return download_symbols(backend_, words_, {});
}

OutputProjection JointAttention::output(const AttentionStream& stream, bool to_out) const {
  OutputProjection output{.weight = stream.weights->out,
                          .bias = stream.weights->out_bias,
                          .o = rows(o_, stream),
                          .mlp = as_batch(stream.mlp)};
  if (to_out || !stream.residual) {
    output.out = as_batch(stream.out);
  } else {
    output.residual = as_batch(stream.residual);
    output.gate = stream.gate;
  }
  return output;
}

void JointAttention::add_out(const AttentionStream& stream) {
  if (stream.residual) backend_.gated_add(stream.out, stream.gate, stream.residual, {});
}

}  // namespace flashomni
