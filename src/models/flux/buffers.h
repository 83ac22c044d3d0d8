// buffers.h -- the activations of one forward pass, allocated once per picture size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/backend.h"
#include "flashomni/engine.h"

namespace flashomni::flux {

// Rows are tokens of the joint sequence, text first, so that a stream is a slice and the single
// blocks find both streams concatenated. The residual stream is f32 whatever the compute dtype.
struct Buffers {
  int text_tokens = 0, image_tokens = 0;
  Tensor hidden;      // [tokens, hidden_dim] f32: the residual stream
  Tensor normed;      // [tokens, hidden_dim] compute dtype: input of a branch
  Tensor branch;      // [tokens, hidden_dim] compute dtype: output of a branch, before its gate
  Tensor mlp_hidden;  // [tokens, 4 hidden_dim] compute dtype
  Tensor rope_cos, rope_sin;
  RopeTables rope() const { return {rope_cos, rope_sin}; }

  Tensor temb;        // [1, hidden_dim] f32: time, guidance and pooled text
  Tensor temb_part;   // [1, hidden_dim] f32: one embedder's share
  Tensor temb_inner;  // [1, hidden_dim] f32: between an embedder's two layers
  Tensor sinusoid;    // [1, 256] f32
  Tensor condition;   // [1, hidden_dim] compute dtype: silu(temb), input of every AdaLN
  Tensor host_sinusoid, host_temb, host_condition;  // the same in host memory
  Tensor modulation[2];                             // [1, 6 hidden_dim] f32: text, image
  Tensor final_normed;                              // [image_tokens, hidden_dim] f32

  TensorView text(const Tensor& rows) const { return rows.view().slice(0, 0, text_tokens); }
  TensorView image(const Tensor& rows) const {
    return rows.view().slice(0, text_tokens, text_tokens + image_tokens);
  }
};

}  // namespace flashomni::flux
