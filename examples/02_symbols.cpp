// 02_symbols.cpp -- leave work out: cache two query blocks, skip key blocks, look at the bits.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "flashomni/attention.h"
#include "flashomni/backend.h"

using namespace flashomni;

int main() {
  constexpr int kTokens = 300, kText = 40, kHeads = 2, kHeadDim = 64;
  // 40 text tokens, then 260 of the image: 1 + 5 blocks, the last of 4 tokens.
  const BlockGrid grid(64, 1, make_segments(kTokens, kText, TextPosition::kFirst));
  SparseSymbols symbols(grid, grid, kHeads);
  symbols.cache(/*item=*/0, /*head=*/1, /*q_block=*/2);
  symbols.cache(0, 1, 3);
  for (int q_block = 1; q_block < grid.num_blocks(); ++q_block) {
    symbols.skip(0, /*head=*/0, q_block, /*kv_block=*/4);
  }

  // Bit 1 = compute. Cache words hold one bit a head, skip rows one bit a kv block.
  for (int q_block = 0; q_block < grid.num_blocks(); ++q_block) {
    std::printf("q block %d (%2d tokens): heads %x, kv blocks of head 0 %02x, of head 1 %02x\n",
                q_block, grid.at(0, q_block).count, symbols.cache_row(0, q_block)[0],
                symbols.skip_row(0, 0, q_block)[0], symbols.skip_row(0, 1, q_block)[0]);
  }
  const SymbolStats stats = symbols.stats();
  std::printf("%.1f %% of the (query, key) pairs are left, %.1f %% cached, %.1f %% skipped\n",
              100 * stats.density(), 100 * stats.cached_fraction(), 100 * stats.skipped_fraction());

  // Attention computes what is live and leaves cached rows of `out` to the caller.
  const auto backend = make_backend("auto");
  const Layout layout{1, kTokens, kHeads, kHeadDim};
  Tensor qkv = Tensor::host(DType::kF32, layout), out = Tensor::host_zeros(DType::kF32, layout);
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::generate_n(qkv.as<float>(), qkv.num_elements(), [&] { return normal(random); });
  AttentionPlan plan;
  backend->build_attention_plan(symbols, plan, {});
  attention(*backend, plan, qkv, qkv, qkv, 1 / std::sqrt(static_cast<float>(kHeadDim)), out);
  const index_t cached_row = 40 + 64;  // the first token of q block 2
  const float* head_1 = out.as<float>() + (cached_row * kHeads + 1) * kHeadDim;
  std::printf("cached row of head 1: %g, the zero that was there; of head 0: %.4f\n", head_1[0],
              head_1[-kHeadDim]);
}
