// joint_attention.h -- the operator calls of one joint attention layer, and the buffers between.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <utility>

#include "flashomni/engine.h"

namespace flashomni {

// Runs the projections and the attention of a layer by the plans it is given. Q, K, V and O live
// here, [1, seq_len, num_heads, head_dim]; they hold one layer at a time.
class JointAttention {
 public:
  JointAttention(Backend& backend, const SequenceShape& shape, const SparseSymbols& all_live);

  // Plans in which nothing is left out; made at the first call for a range of tokens.
  const AttentionPlan& dense_plan() const { return dense_plan_; }
  const GemmPlan& dense_plan(const AttentionStream& stream);

  // Q of the tiles live in `q_plan`, K and V of those live in `kv_plan`.
  void project(const AttentionStream& stream, const RopeTables& rope, const GemmPlan& q_plan,
               const GemmPlan& kv_plan);
  void attend(const AttentionPlan& plan);
  // Of Q and K as they are now. select() waits for the backend.
  void score(const BlockScoreOptions& options, BlockScores& scores);
  SparseSymbols select(const FlashOmniOptions& options, double ramp);
  ConstTensorView attended() const { return o_; }  // [1, seq_len, num_heads, head_dim]
  // Views of Q, K, V and O under the name of the layer that they are of now.
  AttendedLayer observed(int layer, int branch, int step, LayerAction action) const {
    return {layer, branch, step, action, q_, k_, v_, o_};
  }
  // The arguments of the output projection of `stream`, into its residual if it has one; with
  // `to_out` into its `out`, from where add_out() adds it to the residual.
  OutputProjection output(const AttentionStream& stream, bool to_out) const;
  void add_out(const AttentionStream& stream);

 private:
  TensorView rows(const Tensor& tensor, const AttentionStream& stream) const;

  Backend& backend_;
  int num_heads_, head_dim_;
  const SparseSymbols& all_live_;
  AttentionPlan dense_plan_;
  std::map<std::pair<int, int>, GemmPlan> dense_gemms_;  // by (first token, tokens)
  Tensor q_, k_, v_, o_;
  SymbolWords words_;  // of the last select()
};

}  // namespace flashomni
