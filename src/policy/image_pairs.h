// image_pairs.h -- what fixed masks share: a rule about pairs of image blocks, the same in all
// heads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "flashomni/policy.h"

namespace flashomni {

// The tokens of an image block, counted from the first image token of the sequence.
struct ImageRange {
  int first = 0, count = 0;  // count 0: a block of text, or without a valid token
  int last() const { return first + count - 1; }
};
std::vector<ImageRange> image_ranges(const BlockGrid& grid, int item);

// Skips, in every image row, the image kv blocks that `used(q_range, kv_range)` rejects. Text rows
// and text columns stay.
template <typename Used>
void keep_image_pairs(SparseSymbols& symbols, const Used& used) {
  const BlockGrid& kv_grid = symbols.kv_grid();
  std::vector<std::uint8_t> row(kv_grid.num_blocks());
  for (int item = 0; item < kv_grid.batch(); ++item) {
    const std::vector<ImageRange> q = image_ranges(symbols.q_grid(), item);
    const std::vector<ImageRange> kv = image_ranges(kv_grid, item);
    for (int q_block = 0; q_block < std::ssize(q); ++q_block) {
      if (q[q_block].count == 0) continue;
      for (std::size_t j = 0; j < kv.size(); ++j) {
        row[j] = kv[j].count == 0 || used(q[q_block], kv[j]);
      }
      for (int head = 0; head < symbols.num_heads(); ++head) {
        symbols.set_skip_row(item, head, q_block, row);
      }
    }
  }
}

// For `limitation()` of a policy that cannot do without places: "" if they are known.
std::string unknown_places(std::string_view policy, std::span<const TokenPlace> places);

// The smallest grid that holds the places.
TokenGrid extent(std::span<const TokenPlace> places);

}  // namespace flashomni
