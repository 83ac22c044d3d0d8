// selection.h -- block statistics of Q and K, and symbols chosen by them where the kernels run.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "flashomni/plan.h"
#include "flashomni/symbols.h"
#include "flashomni/tensor.h"

namespace flashomni {

class Backend;

struct BlockScoreOptions {
  float scale = 0;               // of the logits; 0 = head_dim^-0.5
  bool similarity = false;       // also fill q_similarity and k_similarity
  bool subtract_k_mean = false;  // pool K minus its per-head mean over tokens
  bool log_count_bias = false;   // add log(count / block) to the logits of short kv blocks
  bool operator==(const BlockScoreOptions&) const = default;
};

// Block-pooled statistics of Q and K for policies, on the host.
struct BlockScores {
  int batch = 0, num_heads = 0, num_q_blocks = 0, num_kv_blocks = 0;
  std::vector<float> logits;        // [batch, num_heads, q_blocks, kv_blocks]; 0 in empty blocks
  std::vector<float> q_similarity;  // [batch, num_heads, q_blocks]  mean pairwise cosine of the
  std::vector<float> k_similarity;  // [batch, num_heads, kv_blocks] tokens of a block
  std::span<const float> logits_row(int item, int head, int q_block) const {
    return {
        logits.data() + ((static_cast<index_t>(item) * num_heads + head) * num_q_blocks + q_block) *
                            num_kv_blocks,
        static_cast<std::size_t>(num_kv_blocks)};
  }
};

enum class PolicyScope { kHead, kLayer };

// The selection of arXiv:2509.25401, section "sparse symbol generation"; formulas and worked
// examples in docs/paper_map.md.
struct FlashOmniOptions {
  double tau_q = 0.5;    // caching: mass of C and G that the cached blocks may hold; <= 0: none
  double tau_kv = 0.05;  // skipping: softmax mass that a row may lose; <= 0: none
  PolicyScope scope = PolicyScope::kHead;
  std::optional<double> sim_threshold;  // self-similarity gate; absent: off
  bool keep_text_kv = true;             // never skip text columns
  bool subtract_k_mean = false;
  bool log_count_bias = false;
};

// The symbols of one layer in the memory of a backend, in the words of SparseSymbols (symbols.h).
struct SymbolWords {
  BlockGrid q_grid, kv_grid;
  int num_heads = 0;
  Tensor cache;  // i32 [batch, q_blocks, head_words]
  Tensor skip;   // i32 [batch, num_heads, q_blocks, kv_words]
  // What a backend keeps to select again: tables of the grids, scratch.
  BackendLists backend_lists = no_backend_lists();
};

// Room for symbols of these grids; what the words hold is not defined yet.
// Throws kInvalidArgument as SparseSymbols does.
SymbolWords make_symbol_words(Backend& backend, BlockGrid q_grid, BlockGrid kv_grid, int num_heads);
// Throws kInvalidArgument if the grids or the number of heads differ. Waits.
void upload_symbols(Backend& backend, const SparseSymbols& symbols, SymbolWords& words,
                    Stream stream = {});
// A copy on the host, e.g. for its stats(). Waits for the stream.
SparseSymbols download_symbols(Backend& backend, const SymbolWords& words, Stream stream = {});

// Where Backend::select_symbols leaves its scores C and G, before any sum over heads: each
// f32 [batch, num_heads, q_blocks], contiguous, 0 at text blocks; or {} = not wanted.
struct ScoreViews {
  TensorView c, g;
};

}  // namespace flashomni
