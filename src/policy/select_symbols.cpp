// select_symbols.cpp -- what Backend::select_symbols does where no kernel selects: block scores
// measured by the backend, the selection on the host.
// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "flashomni/policy.h"

namespace flashomni {
namespace {

void copy_scores(Backend& backend, std::vector<float>& from, TensorView to, Stream stream) {
  if (!to) return;
  backend.copy(TensorView(from.data(), DType::kF32, to.layout), to, stream);
}

}  // namespace

void Backend::select_symbols(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options,
                             double ramp, SymbolWords& words, const ScoreViews& scores,
                             Stream stream) {
  const BlockScoreOptions measured{.similarity = options.sim_threshold.has_value(),
                                   .subtract_k_mean = options.subtract_k_mean,
                                   .log_count_bias = options.log_count_bias};
  BlockScores pooled;
  block_scores(q, k, words.q_grid, words.kv_grid, measured, pooled, stream);
  SparseSymbols symbols(words.q_grid, words.kv_grid, words.num_heads);
  SelectionScores selection = select_flashomni(options, ramp, pooled, symbols);
  copy_scores(*this, selection.c, scores.c, stream);
  copy_scores(*this, selection.g, scores.g, stream);
  upload_symbols(*this, symbols, words, stream);  // waits, so that the scores may go
}

}  // namespace flashomni
