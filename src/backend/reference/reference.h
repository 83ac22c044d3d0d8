// reference.h -- the backend that defines what the others must compute.
//
// Scalar loops in fp32, written to be read: operands are read at their own precision, sums are
// fp32, each result is rounded once when it is stored. One operator a file.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/registry.h"

namespace flashomni {

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);
BackendProbe probe_reference_backend();

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string description() const override { return "scalar fp32 loops, 1 thread"; }
  Device device() const override { return {}; }

  Tensor allocate(DType dtype, Layout layout) override;
  void copy(ConstTensorView from, TensorView to, Stream) override;
  void synchronize(Stream) override {}
  PackedWeight pack_weight(ConstTensorView weight, DType dtype, int column_group) override;

  void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan, Stream) override;
  void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                       const SparseSymbols* previous, GemmPlan& plan, Stream) override;

  void attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                 float scale, TensorView out, TensorView lse, Stream,
                 const AttentionReuse& reuse) override;
  void gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
              ConstTensorView bias, const NormRope& epilogue, TensorView out, Stream) override;
  void gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                     float steps_since_update, const BiasCacheView& cache, Stream) override;
  void gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                       std::span<const float> coefficients, const BiasCacheView& cache,
                       Stream) override;

  void linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
              Activation activation, TensorView out, Stream) override;
  void norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale, float eps,
                     TensorView out, Stream) override;
  void gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual, Stream) override;

  void block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                    const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores,
                    Stream) override;
  void forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                TensorView out, Stream) override;
  void push_differences(ConstTensorView value, int order, float steps,
                        std::span<const TensorView> terms, Stream) override;
};

}  // namespace flashomni
