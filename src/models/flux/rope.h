// rope.h -- rotary position tables of FLUX's joint sequence.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <span>

#include "flashomni/tensor.h"
#include "flashomni/token_order.h"

namespace flashomni::flux {

struct RopeTensors {
  Tensor cos, sin;  // [text_tokens + image tokens, head_dim / 2] f32, host
};

// Position ids (0, 0, 0) for text tokens and (frame, row, column) for image tokens; axis i turns
// the pairs of its axes_dims[i] channels. Angles are formed in double, as diffusers' FluxPosEmbed
// does.
RopeTensors make_rope_tables(int text_tokens, std::span<const TokenPlace> places,
                             const std::array<int, 3>& axes_dims);

}  // namespace flashomni::flux
