// layer_state.h -- what the engine remembers of one layer of one branch between steps.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <vector>

#include "engine/forecast.h"
#include "engine/head_change.h"
#include "flashomni/engine.h"

namespace flashomni {

enum class LayerMode {
  kSparse,      // dispatch steps run by the symbols
  kLayerCache,  // dispatch steps forecast the outputs of the layer's modules; for good
};

// Storage of the projected bias cache of a layer: one table for the whole joint sequence, of which
// each stream sees its rows.
struct BiasCache {
  int order = -1;
  std::array<Tensor, kMaxForecastOrder + 1> terms;  // [1, seq_len, hidden_dim] f32
  Tensor valid_order;                               // u8 [1, num_q_blocks]

  // Allocates unless it is of this order already.
  void reserve(Backend& backend, int new_order, const SequenceShape& shape,
               const BlockGrid& q_grid);
  BiasCacheView rows(int first_token, int num_tokens) const {
    BiasCacheView view;
    view.order = order;
    view.valid_order = valid_order;
    for (int o = 0; o <= order; ++o) {
      view.terms[o] = terms[o].view().slice(1, first_token, first_token + num_tokens);
    }
    return view;
  }
};

struct TokenRange {
  int first_token = 0, num_tokens = 0;
  bool operator==(const TokenRange&) const = default;
};

struct LayerState {
  LayerMode mode = LayerMode::kSparse;
  int last_step = -1;  // that attend() ran in, and what it did
  LayerAction last_action = LayerAction::kDense;
  int updated_at = -1;              // step of the last update; -1: none yet
  SparseSymbols symbols, previous;  // of the last update and the one before it
  AttentionPlan attention;
  std::vector<TokenRange> streams;  // of the last update; `gemms` has one plan for each
  std::vector<GemmPlan> gemms;
  std::vector<GemmPlan> kv_gemms;  // without heads that have no live block; empty: every head has
  BiasCache bias;
  std::vector<ModuleCache> modules;
  HeadChange head_change;

  // Compiles `symbols` for dispatch steps of these streams.
  void build_plans(Backend& backend, const SparseSymbols& all_live,
                   std::span<const AttentionStream> of_streams);
  bool has_symbols() const { return updated_at >= 0; }
  bool has_modules() const { return !modules.empty() && modules.front().is_recorded(); }
};

}  // namespace flashomni
