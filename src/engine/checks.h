// checks.h -- what the engine asks of its callers; each function throws kInvalidArgument.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "engine/layer_state.h"
#include "flashomni/engine.h"

namespace flashomni {

void check_engine_options(const EngineOptions& options);
void check_sequence(const SequenceShape& shape);
void check_layer(const char* function, int layer, int num_layers);
void check_hidden(const char* function, ConstTensorView hidden, const SequenceShape& shape);
void check_streams(const SequenceShape& shape, std::span<const AttentionStream> streams,
                   const RopeTables& rope);
// A layer must run its dispatch steps with the streams of its update.
void check_same_streams(int layer, std::span<const TokenRange> updated,
                        std::span<const AttentionStream> streams);

}  // namespace flashomni
