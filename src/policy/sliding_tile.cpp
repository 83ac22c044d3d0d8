// sliding_tile.cpp -- a window of tiles around the query's tile, in two or three dimensions.
//
// The grid of image tokens is cut into tiles. A query sees the tiles of a window centred on its own
// tile, which is moved inwards where it would reach over the border; a pair of blocks is used if
// any pair of its tokens is. Exact for the source where a block is (part of) a tile, which is what
// the token order "tile" makes; in raster order a block touches several tiles and keeps more.
// Source: sliding tile attention (STA), arXiv:2502.04507; one window for all heads here.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "policy/image_pairs.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

// First tile of the window of a query at `tile`, of `count` tiles.
int window_start(int tile, int window, int count) {
  return std::clamp(tile - window / 2, 0, std::max(0, count - window));
}

bool in_window(int q_tile, int kv_tile, int window, int count) {
  const int start = window_start(q_tile, window, count);
  return kv_tile >= start && kv_tile < start + window;
}

class SlidingTile : public SparsityPolicy {
 public:
  SlidingTile(const TokenGrid& tile, const TokenGrid& window) : tile_(tile), window_(window) {}

  std::string_view name() const override { return "sliding-tile"; }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (context.places.empty()) return;
    const TokenPlace last =
        tile_at({extent(context.places).frames - 1, extent(context.places).height - 1,
                 extent(context.places).width - 1});
    const TokenGrid count{last.frame + 1, last.row + 1, last.column + 1};
    keep_image_pairs(symbols, [&](ImageRange q, ImageRange kv) {
      const std::vector<TokenPlace> kv_tiles = tiles_of(context.places.subspan(kv.first, kv.count));
      return std::ranges::any_of(
          tiles_of(context.places.subspan(q.first, q.count)), [&](const TokenPlace& q_tile) {
            return std::ranges::any_of(kv_tiles, [&](const TokenPlace& kv_tile) {
              return in_window(q_tile.frame, kv_tile.frame, window_.frames, count.frames) &&
                     in_window(q_tile.row, kv_tile.row, window_.height, count.height) &&
                     in_window(q_tile.column, kv_tile.column, window_.width, count.width);
            });
          });
    });
  }

  std::string limitation(const BlockGrid&, std::span<const TokenPlace> places) const override {
    return unknown_places(name(), places);
  }

 private:
  TokenPlace tile_at(const TokenPlace& place) const {
    return {place.frame / tile_.frames, place.row / tile_.height, place.column / tile_.width};
  }

  // Without neighbouring repetitions.
  std::vector<TokenPlace> tiles_of(std::span<const TokenPlace> places) const {
    std::vector<TokenPlace> tiles;
    for (const TokenPlace& place : places) {
      const TokenPlace tile = tile_at(place);
      if (tiles.empty() || tiles.back() != tile) tiles.push_back(tile);
    }
    return tiles;
  }

  TokenGrid tile_, window_;
};

}  // namespace

PolicyPtr make_sliding_tile(const OptionReader& options) {
  return std::make_unique<SlidingTile>(options.size("tile", {1, 8, 8}),
                                       options.size("tile-window", {1, 3, 3}));
}

}  // namespace flashomni
