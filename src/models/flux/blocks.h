// blocks.h -- the two kinds of transformer block.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/engine.h"
#include "models/flux/buffers.h"
#include "models/flux/weights.h"

namespace flashomni::flux {

// Each advances buffers.hidden by one block. `layer` is the engine's number of the block.
void run_double_block(Engine& engine, int layer, const DoubleBlockWeights& weights,
                      const Buffers& buffers);
void run_single_block(Engine& engine, int layer, const SingleBlockWeights& weights,
                      const Buffers& buffers);

}  // namespace flashomni::flux
