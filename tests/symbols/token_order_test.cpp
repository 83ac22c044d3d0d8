#include "flashomni/token_order.h"

#include <set>
#include <tuple>

#include "gmock/gmock.h"

#include "errors.h"

namespace flashomni {
namespace {

using testing::ElementsAre;

TEST(TokenOrder, IsRasterFrameByFrameAndRowByRow) {
  EXPECT_THAT(place_tokens({2, 2, 2}, TokenOrder::kRaster, 64),
              ElementsAre(TokenPlace{0, 0, 0}, TokenPlace{0, 0, 1}, TokenPlace{0, 1, 0},
                          TokenPlace{0, 1, 1}, TokenPlace{1, 0, 0}, TokenPlace{1, 0, 1},
                          TokenPlace{1, 1, 0}, TokenPlace{1, 1, 1}));
}

// Tiles of 2 x 2 in a picture of 2 x 3: the second is cut short.
TEST(TokenOrder, GoesTileByTile) {
  EXPECT_THAT(place_tokens({1, 2, 3}, TokenOrder::kTile, 4),
              ElementsAre(TokenPlace{0, 0, 0}, TokenPlace{0, 0, 1}, TokenPlace{0, 1, 0},
                          TokenPlace{0, 1, 1}, TokenPlace{0, 0, 2}, TokenPlace{0, 1, 2}));
}

TEST(TokenOrder, CutsTilesThatHoldABlock) {
  EXPECT_EQ(tile_of({1, 64, 64}, 64), (TokenGrid{1, 8, 8}));
  EXPECT_EQ(tile_of({1, 64, 64}, 128), (TokenGrid{1, 8, 16}));
  EXPECT_EQ(tile_of({16, 64, 64}, 64), (TokenGrid{4, 4, 4}));
  EXPECT_EQ(tile_of({16, 64, 64}, 128), (TokenGrid{4, 4, 8}));
  EXPECT_EQ(tile_of({1, 64, 64}, 3), (TokenGrid{1, 1, 1}));
}

TEST(TokenOrder, ABlockIsATileWhereTilesFit) {
  const auto places = place_tokens({8, 16, 12}, TokenOrder::kTile, 64);
  for (std::size_t block = 0; block < places.size() / 64; ++block) {
    std::set<std::tuple<int, int, int>> tiles;
    for (std::size_t i = 64 * block; i < 64 * block + 64; ++i) {
      tiles.insert({places[i].frame / 4, places[i].row / 4, places[i].column / 4});
    }
    EXPECT_EQ(tiles.size(), 1u);
  }
}

TEST(TokenOrder, PlacesEveryTokenOnce) {
  for (const TokenGrid grid : {TokenGrid{1, 13, 21}, TokenGrid{5, 9, 7}, TokenGrid{3, 1, 1}}) {
    for (const TokenOrder order : {TokenOrder::kRaster, TokenOrder::kTile}) {
      std::set<std::tuple<int, int, int>> seen;
      for (const TokenPlace& place : place_tokens(grid, order, 64)) {
        EXPECT_LT(place.frame, grid.frames);
        EXPECT_LT(place.row, grid.height);
        EXPECT_LT(place.column, grid.width);
        EXPECT_TRUE(seen.insert({place.frame, place.row, place.column}).second);
      }
      EXPECT_EQ(seen.size(), std::size_t(grid.frames * grid.height * grid.width));
    }
  }
}

TEST(TokenOrder, NamesAGridWithoutTokens) {
  EXPECT_EQ(test::error_of([] {
              place_tokens({1, 0, 4}, TokenOrder::kTile, 64);
            }),
            "place_tokens: grid is 1 x 0 x 4 and block 64, must be at least 1");
}

}  // namespace
}  // namespace flashomni
