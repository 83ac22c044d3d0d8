// token_order.h -- where the image tokens of a sequence stand in the picture or video.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

namespace flashomni {

// A picture or video in tokens.
struct TokenGrid {
  int frames = 1, height = 0, width = 0;
  bool operator==(const TokenGrid&) const = default;
};

struct TokenPlace {
  int frame = 0, row = 0, column = 0;
  bool operator==(const TokenPlace&) const = default;
};

enum class TokenOrder {
  kRaster,  // frame by frame, row by row
  kTile,    // tile by tile, so that the tokens of a block are neighbours in every direction
};
std::string_view token_order_name(TokenOrder order);  // "raster", "tile"

// The tile that holds `block` tokens of `grid`: powers of two, height before width in a picture
// (64: 8 x 8, 128: 8 x 16), the frames' share first in a video (64: 4 x 4 x 4, 128: 4 x 4 x 8).
// {1, 1, 1} for a block below 4.
TokenGrid tile_of(const TokenGrid& grid, int block);

// The place of every image token, in the order in which they stand in the sequence. Tiles of
// tile_of(grid, block) follow each other in raster order, and so do the tokens in each; tiles that
// would reach over the border are cut short.
// Throws kInvalidArgument for a grid or block below 1.
std::vector<TokenPlace> place_tokens(const TokenGrid& grid, TokenOrder order, int block);

}  // namespace flashomni
