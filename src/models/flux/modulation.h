// modulation.h -- the conditioning vector and the shifts, scales and gates made from it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/backend.h"
#include "flashomni/flux.h"
#include "models/flux/buffers.h"
#include "models/flux/weights.h"

namespace flashomni::flux {

inline constexpr float kNormEps = 1e-6f;

// buffers.temb <- time (+ guidance) + pooled text; buffers.condition <- silu(temb).
void embed_condition(Backend& backend, const FluxWeights& weights, const FluxConfig& config,
                     const FluxInput& input, Buffers& buffers);

// Part `index` of an AdaLN vector, [hidden_dim] f32: shift, scale, gate of attention, then of the
// MLP; of a single block shift, scale, gate; of the final norm scale, shift.
ConstTensorView modulation_part(const Tensor& modulation, int index, index_t hidden_dim);

void modulate(Backend& backend, const Linear& linear, const Buffers& buffers,
              const Tensor& modulation);

}  // namespace flashomni::flux
