// image_pairs.cpp -- what fixed masks share.
// SPDX-License-Identifier: Apache-2.0
#include "policy/image_pairs.h"

#include <algorithm>

namespace flashomni {

std::vector<ImageRange> image_ranges(const BlockGrid& grid, int item) {
  std::vector<ImageRange> ranges(grid.num_blocks());
  int next = 0;
  for (int index = 0; index < grid.num_blocks(); ++index) {
    if (grid.is_text(item, index)) continue;
    ranges[index] = {next, grid.at(item, index).count};
    next += ranges[index].count;
  }
  return ranges;
}

std::string unknown_places(std::string_view policy, std::span<const TokenPlace> places) {
  if (!places.empty()) return {};
  return "the model does not say where the image tokens stand: " + std::string(policy) +
         " skips nothing";
}

TokenGrid extent(std::span<const TokenPlace> places) {
  TokenGrid grid;
  for (const TokenPlace& place : places) {
    grid.frames = std::max(grid.frames, place.frame + 1);
    grid.height = std::max(grid.height, place.row + 1);
    grid.width = std::max(grid.width, place.column + 1);
  }
  return grid;
}

}  // namespace flashomni
