// The CUDA backend's cutting of projections into tiles: plain C++, tested without a GPU.
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>

#include "backend/cuda/tiles.h"
#include "flashomni/plan.h"

namespace flashomni::cuda {
namespace {

// Two items, the second ragged; `percent` of the (head, row block) pairs cached.
GemmPlan random_plan(int seq_len, int num_heads, int percent) {
  const std::vector<Segment> segments{{SegmentKind::kImage, seq_len}};
  const std::vector<int> lengths{seq_len, seq_len - 130};
  const BlockGrid grid(128, 2, segments, lengths);
  SparseSymbols symbols(grid, grid, num_heads);
  std::mt19937 random(1);
  for (int item = 0; item < 2; ++item) {
    for (int head = 0; head < num_heads; ++head) {
      for (int q = 0; q < grid.num_blocks(); ++q) {
        if (static_cast<int>(random() % 100) < percent) symbols.cache(item, head, q);
      }
    }
  }
  GemmPlan plan;
  build_gemm_plan(symbols, 0, seq_len, nullptr, plan);
  return plan;
}

using Place = std::tuple<int, int, int>;  // batch, row, head or column

std::map<Place, int> live_places(const GemmPlan& plan) {
  std::map<Place, int> places;
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    const RowBlock& block = plan.row_blocks[i];
    for (const int head : plan.live_heads(i)) ++places[{block.batch, block.row, head}];
  }
  return places;
}

TEST(CudaTiles, HeadTilesCoverEveryLiveHeadOnce) {
  for (const int percent : {0, 30, 90, 100}) {
    const GemmPlan plan = random_plan(3000, 5, percent);
    for (const int clusters : {1, 7, 66}) {
      std::map<Place, int> seen;
      for (const HeadTile& tile : make_head_tiles(plan, clusters)) {
        for (int i = 0; i < (tile.in_halves ? 2 : 4); ++i) {
          const RowRange& rows = tile.rows[i];
          if (rows.num_rows > 0) ++seen[{rows.batch, rows.row, tile.head}];
        }
        for (int i = 0; tile.in_halves && i < 2; ++i) {
          EXPECT_EQ(
              std::tie(tile.rows[i].batch, tile.rows[i].row, tile.rows[i].num_rows),
              std::tie(tile.rows[i + 2].batch, tile.rows[i + 2].row, tile.rows[i + 2].num_rows));
        }
      }
      EXPECT_EQ(seen, live_places(plan)) << percent << " % cached, " << clusters << " clusters";
    }
  }
}

TEST(CudaTiles, AnUnfinishedRoundOfHeadTilesIsCutWhereThatSavesTime) {
  const GemmPlan plan = random_plan(128 * 9, 1, 0);  // 9 + 8 row blocks: 4 tiles and 1 row block
  EXPECT_EQ(make_head_tiles(plan, 4).size(), 5u);
  for (const auto [clusters, num_tiles] : {std::pair{8, 5u}, {9, 9u}, {16, 9u}, {17, 17u}}) {
    const auto tiles = make_head_tiles(plan, clusters);
    EXPECT_EQ(tiles.size(), num_tiles) << clusters;
    EXPECT_EQ(tiles.front().in_halves, num_tiles > 5) << clusters;
  }
}

TEST(CudaTiles, TheCutOfTheLastRoundIsTheFastest) {
  const auto expect_cut = [](const LastRoundTiles& tiles, int rest_rows, int left_rows) {
    const LastRound cut = cut_last_round(tiles, 66);
    EXPECT_EQ(cut.rest_rows, rest_rows) << tiles.rest[0] << " + " << tiles.left[1];
    EXPECT_EQ(cut.left_rows, left_rows) << tiles.rest[0] << " + " << tiles.left[1];
  };
  expect_cut({{48, 96, 189}, {15, 15, 23}}, 4, 4);  // all fit as they are
  expect_cut({{65, 130, 256}, {14, 14, 20}}, 4, 1);
  expect_cut({{19, 38, 72}, {13, 13, 20}}, 2, 2);
  expect_cut({{13, 26, 45}, {9, 9, 11}}, 1, 1);
  expect_cut({{26, 52, 101}, {15, 15, 20}}, 1, 1);
  expect_cut({{60, 120, 230}, {0, 0, 0}}, 4, 4);
}

// As heads and row blocks (of 128 rows, of one item) of each tile.
std::vector<std::vector<int>> heads_and_blocks(const std::vector<HeadTile>& tiles) {
  std::vector<std::vector<int>> lists;
  for (const HeadTile& tile : tiles) {
    std::vector<int>& list = lists.emplace_back(1, tile.head);
    for (int i = 0; i < (tile.in_halves ? 2 : 4); ++i) {
      if (tile.rows[i].num_rows > 0) list.push_back(tile.rows[i].row / 128);
    }
  }
  return lists;
}

TEST(CudaTiles, AHeadWaitsUntilItIsLiveInFourRowBlocks) {
  const std::vector<std::vector<int>> live = {// of heads
                                              {0, 2, 3, 5, 6},
                                              {0, 1, 2, 3},
                                              {1, 3, 5},
                                              {},
                                              {0, 1, 2, 3, 4, 5, 6}};
  const BlockGrid grid(128, 1, make_segments(128 * 7, 0, TextPosition::kNone));
  SparseSymbols symbols(grid, grid, 5);
  for (int head = 0; head < 5; ++head) {
    for (int block = 0; block < 7; ++block) {
      if (!std::ranges::count(live[head], block)) symbols.cache(0, head, block);
    }
  }
  GemmPlan plan;
  build_gemm_plan(symbols, 0, 128 * 7, nullptr, plan);
  using testing::ElementsAre;
  EXPECT_THAT(heads_and_blocks(make_head_tiles(plan, 1)),
              ElementsAre(ElementsAre(1, 0, 1, 2, 3), ElementsAre(4, 0, 1, 2, 3),
                          ElementsAre(0, 0, 2, 3, 5), ElementsAre(2, 1, 3, 5),
                          ElementsAre(4, 4, 5, 6), ElementsAre(0, 6)));
  EXPECT_THAT(heads_and_blocks(make_head_tiles(plan, 4)),  // the fifth and what is left of head 0
              ElementsAre(ElementsAre(1, 0, 1, 2, 3), ElementsAre(4, 0, 1, 2, 3),
                          ElementsAre(0, 0, 2, 3, 5), ElementsAre(2, 1, 3, 5), ElementsAre(4, 4),
                          ElementsAre(4, 5), ElementsAre(4, 6), ElementsAre(0, 6)));
}

TEST(CudaTiles, RowTilesHoldEveryLiveHeadOnce) {
  const GemmPlan plan = random_plan(3000, 13, 40);
  std::map<Place, int> seen;
  for (const GemmTile& tile : make_row_tiles(plan, 8)) {
    EXPECT_LE(tile.num_live, 8);
    for (int i = 0; i < tile.num_live; ++i) {
      ++seen[{tile.batch, tile.row, plan.head_lists[tile.first_head + i]}];
    }
  }
  EXPECT_EQ(seen, live_places(plan));
}

// Columns of each row block, in steps of 128.
std::map<Place, int> covered_columns(const std::vector<GemmTile>& tiles, int out_features) {
  std::map<Place, int> seen;
  for (const GemmTile& tile : tiles) {
    for (int at = tile.column; at < tile.column + 2 * tile.width && at < out_features; at += 128) {
      ++seen[{tile.batch, tile.row, at}];
    }
  }
  return seen;
}

TEST(CudaTiles, ColumnTilesCoverTheOutputWholeOrHalved) {
  const GemmPlan plan = random_plan(1500, 6, 50);
  for (const int out_features : {40, 256, 512, 600, 1408}) {
    std::map<Place, int> wanted;
    for (const RowBlock& block : plan.row_blocks) {
      for (int at = 0; at < out_features; at += 128) wanted[{block.batch, block.row, at}] = 1;
    }
    auto tiles = make_column_tiles(plan, out_features);
    EXPECT_EQ(covered_columns(tiles, out_features), wanted);
    EXPECT_TRUE(std::ranges::is_sorted(tiles, std::greater{}, &GemmTile::num_live));
    for (const int clusters : {1, 50, 1000}) {
      auto halved = tiles;
      halve_last_tiles(out_features, clusters, halved);
      EXPECT_EQ(covered_columns(halved, out_features), wanted) << clusters;
      if (clusters == 1000) EXPECT_EQ(halved.back().width, 128);
    }
  }
}

TEST(CudaTiles, OnlyALastRoundOfAtMostHalfTheClustersIsHalved) {
  EXPECT_EQ(count_wide_tiles(216, 66), 198);  // 18 are left
  EXPECT_EQ(count_wide_tiles(132, 66), 132);
  EXPECT_EQ(count_wide_tiles(100, 66), 100);  // 34 are left
  EXPECT_EQ(count_wide_tiles(20, 66), 0);
}

}  // namespace
}  // namespace flashomni::cuda
