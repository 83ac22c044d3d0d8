// rope.h -- rotary position tables of FLUX's joint sequence.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "flashomni/tensor.h"

namespace flashomni::flux {

struct RopeTensors {
  Tensor cos, sin;  // [text_tokens + grid_height * grid_width, head_dim / 2] f32, host
};

// Position ids (0, 0, 0) for text tokens and (0, y, x) for image tokens; axis i turns the pairs of
// its axes_dims[i] channels. Angles are formed in double, as diffusers' FluxPosEmbed does.
RopeTensors make_rope_tables(int text_tokens, int grid_height, int grid_width,
                             const std::array<int, 3>& axes_dims);

}  // namespace flashomni::flux
