// token_order.cpp -- where the image tokens of a sequence stand in the picture or video.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/token_order.h"

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace flashomni {
namespace {

// The tokens of the box [from, from + size) in raster order.
void append_box(const TokenPlace& from, const TokenGrid& size, std::vector<TokenPlace>& places) {
  for (int token = 0; token < size.frames * size.height * size.width; ++token) {
    const int row_of_all = token / size.width;
    places.push_back({from.frame + row_of_all / size.height, from.row + row_of_all % size.height,
                      from.column + token % size.width});
  }
}

int parts(int whole, int part) { return (whole + part - 1) / part; }

}  // namespace

std::string_view token_order_name(TokenOrder order) {
  return order == TokenOrder::kRaster ? "raster" : "tile";
}

TokenGrid tile_of(const TokenGrid& grid, int block) {
  const int log2_block = std::bit_width(static_cast<unsigned>(block)) - 1;
  const int log2_frames = grid.frames > 1 ? log2_block / 3 : 0;
  const int log2_height = (log2_block - log2_frames) / 2;
  const int log2_width = log2_block - log2_frames - log2_height;
  if (log2_block < 2) return {1, 1, 1};
  return {1 << log2_frames, 1 << log2_height, 1 << log2_width};
}

std::vector<TokenPlace> place_tokens(const TokenGrid& grid, TokenOrder order, int block) {
  FO_CHECK(grid.frames >= 1 && grid.height >= 1 && grid.width >= 1 && block >= 1,
           "place_tokens: grid is %d x %d x %d and block %d, must be at least 1", grid.frames,
           grid.height, grid.width, block);
  std::vector<TokenPlace> places;
  const TokenGrid tile = order == TokenOrder::kTile ? tile_of(grid, block) : grid;
  const int down = parts(grid.height, tile.height), across = parts(grid.width, tile.width);
  for (int i = 0; i < parts(grid.frames, tile.frames) * down * across; ++i) {
    const TokenPlace from{i / (down * across) * tile.frames, i / across % down * tile.height,
                          i % across * tile.width};
    append_box(from,
               {std::min(tile.frames, grid.frames - from.frame),
                std::min(tile.height, grid.height - from.row),
                std::min(tile.width, grid.width - from.column)},
               places);
  }
  return places;
}

}  // namespace flashomni
