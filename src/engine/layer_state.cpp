// layer_state.cpp -- what an update leaves behind for the dispatch steps of its layer.
// SPDX-License-Identifier: Apache-2.0
#include "engine/layer_state.h"

namespace flashomni {
namespace {

// All live but the heads of which `symbols` leave no query block live: K and V of a head are read
// by those alone.
SparseSymbols without_idle_heads(const SparseSymbols& symbols, const SparseSymbols& all_live) {
  SparseSymbols needed = all_live;
  const int q_blocks = needed.q_grid().num_blocks();
  for (int head = 0; head < needed.num_heads(); ++head) {
    bool live = false;
    for (int i = 0; i < q_blocks; ++i) live = live || symbols.is_live(0, head, i);
    for (int i = 0; i < q_blocks && !live; ++i) needed.cache(0, head, i);
  }
  return needed;
}

}  // namespace

void BiasCache::reserve(Backend& backend, int new_order, const SequenceShape& shape,
                        const BlockGrid& q_grid) {
  if (order == new_order) return;
  const Layout rows{1, q_grid.num_tokens(), shape.hidden_dim};
  const DType term = backend.bias_cache_dtype(shape.dtype);
  for (int o = 0; o <= new_order; ++o) terms[o] = backend.allocate(term, rows);
  valid_order = backend.allocate(DType::kU8, {1, q_grid.num_blocks()});
  order = new_order;
}

void LayerState::build_plans(Backend& backend, const SparseSymbols& all_live,
                             std::span<const AttentionStream> of_streams) {
  backend.build_attention_plan(symbols, attention, {});
  const SparseSymbols needed = without_idle_heads(symbols, all_live);
  const bool all_needed = needed == all_live;
  streams.resize(of_streams.size());
  gemms.resize(of_streams.size());
  kv_gemms.resize(all_needed ? 0 : of_streams.size());
  for (std::size_t i = 0; i < of_streams.size(); ++i) {
    streams[i] = {of_streams[i].first_token, of_streams[i].num_tokens};
    backend.build_gemm_plan(symbols, streams[i].first_token, streams[i].num_tokens,
                            has_symbols() ? &previous : nullptr, gemms[i], {});
    if (all_needed) continue;
    backend.build_gemm_plan(needed, streams[i].first_token, streams[i].num_tokens, nullptr,
                            kv_gemms[i], {});
  }
}

}  // namespace flashomni
