// layout.h -- the index formula of the symbol words; nobody else may write it down again.
// Bits, with a worked example: docs/symbols.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "flashomni/tensor.h"  // index_t

namespace flashomni {

inline constexpr int kWordBits = 32;

constexpr int words_for(int bits) { return (bits + kWordBits - 1) / kWordBits; }
constexpr int word_of(int bit) { return bit / kWordBits; }
constexpr std::uint32_t mask_of(int bit) { return 1u << (bit % kWordBits); }

// First word of a row of cache bits, [batch, q_blocks, head_words].
constexpr index_t cache_row_offset(int item, int q_block, int num_q_blocks, int head_words) {
  return (static_cast<index_t>(item) * num_q_blocks + q_block) * head_words;
}

// First word of a row of skip bits, [batch, num_heads, q_blocks, kv_words].
constexpr index_t skip_row_offset(int item, int head, int q_block, int num_heads, int num_q_blocks,
                                  int kv_words) {
  return ((static_cast<index_t>(item) * num_heads + head) * num_q_blocks + q_block) * kv_words;
}

inline bool test_bit(std::span<const std::uint32_t> row, int bit) {
  return (row[word_of(bit)] & mask_of(bit)) != 0;
}

// Calls visit(bit) for every set bit of `row`, ascending.
template <typename Visit>
void for_each_set_bit(std::span<const std::uint32_t> row, Visit&& visit) {
  for (std::size_t w = 0; w < row.size(); ++w) {
    for (std::uint32_t rest = row[w]; rest != 0; rest &= rest - 1) {
      visit(static_cast<int>(w) * kWordBits + std::countr_zero(rest));
    }
  }
}

}  // namespace flashomni
