#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/error.h"
#include "flashomni/plan.h"

#include "plan/cached_blocks.h"

namespace flashomni {
namespace {

using testing::ElementsAre;

BlockGrid image_grid(int block, int tokens, std::vector<int> lengths) {
  return BlockGrid(block, static_cast<int>(lengths.size()),
                   make_segments(tokens, 0, TextPosition::kNone), lengths);
}

std::span<const std::int32_t> kv_of(const AttentionPlan& plan, const AttentionItem& item) {
  return std::span(plan.kv_blocks).subspan(item.first_kv, item.num_kv);
}

TEST(AttentionPlan, ListsLiveBlocksLongestFirstWithinAHead) {
  SparseSymbols symbols(image_grid(4, 12, {12}), image_grid(4, 12, {12}), 2);
  symbols.cache(0, 0, 2);
  symbols.skip(0, 0, 0, 1);
  symbols.set_skip_row(0, 1, 1, std::vector<std::uint8_t>{0, 0, 0});
  AttentionPlan plan;
  build_attention_plan(symbols, plan);

  ASSERT_EQ(plan.items.size(), 5u);
  const auto expect_item = [&](int i, int head, int q, std::vector<int> kv) {
    SCOPED_TRACE(i);
    EXPECT_EQ(plan.items[i].head, head);
    EXPECT_EQ(plan.items[i].q_block, q);
    EXPECT_THAT(kv_of(plan, plan.items[i]), testing::ElementsAreArray(kv));
  };
  expect_item(0, 0, 1, {0, 1, 2});
  expect_item(1, 0, 0, {0, 2});
  expect_item(2, 1, 0, {0, 1, 2});
  expect_item(3, 1, 2, {0, 1, 2});
  expect_item(4, 1, 1, {});
  EXPECT_EQ(plan.stats.live_block_pairs, 11);
  EXPECT_EQ(plan.num_heads, 2);
}

TEST(CachedBlocks, AreWhatThePlanLeavesOut) {
  SparseSymbols symbols(image_grid(4, 12, {10, 3}), image_grid(4, 12, {12, 12}), 2);
  symbols.cache(0, 0, 2);
  symbols.cache(0, 1, 0);
  symbols.cache(1, 1, 0);
  symbols.cache(1, 1, 2);  // has no tokens
  AttentionPlan plan;
  build_attention_plan(symbols, plan);
  EXPECT_THAT(cached_blocks(plan), ElementsAre(CachedBlock{0, 0, {8, 2}}, CachedBlock{0, 1, {0, 4}},
                                               CachedBlock{1, 1, {0, 3}}));
}

TEST(AttentionPlan, LeavesOutBlocksPastALength) {
  AttentionPlan plan;
  build_attention_plan(SparseSymbols(image_grid(4, 12, {12, 5}), image_grid(4, 8, {8, 0}), 1),
                       plan);
  ASSERT_EQ(plan.items.size(), 5u);
  EXPECT_EQ(plan.items[3], (AttentionItem{1, 0, 0, 6, 0}));
  EXPECT_EQ(plan.items[4], (AttentionItem{1, 0, 1, 6, 0}));
}

TEST(AttentionPlan, KeepsItsStorageForSymbolsOfTheSameGrids) {
  SparseSymbols symbols(image_grid(4, 64, {64}), image_grid(4, 64, {64}), 3);
  SparseSymbols sparse = symbols;
  sparse.cache(0, 1, 3);
  AttentionPlan plan;
  build_attention_plan(sparse, plan);
  const auto* items = plan.items.data();
  const auto* kv_blocks = plan.kv_blocks.data();
  build_attention_plan(symbols, plan);
  EXPECT_EQ(plan.items.data(), items);
  EXPECT_EQ(plan.kv_blocks.data(), kv_blocks);
}

// Two text blocks (4 + 2 tokens), three image blocks (4 + 4 + 1), two items, the second one short.
struct Joint {
  BlockGrid grid{4, 2, make_segments(15, 6, TextPosition::kFirst), std::vector<int>{15, 8}};
  SparseSymbols symbols{grid, grid, 3};
};

TEST(GemmPlan, ListsCachedThenLiveHeadsOfEveryRowBlock) {
  Joint joint;
  joint.symbols.cache(0, 1, 3);
  joint.symbols.cache(0, 2, 4);
  joint.symbols.cache(0, 0, 4);
  GemmPlan plan;
  build_gemm_plan(joint.symbols, 6, 9, nullptr, plan);
  EXPECT_THAT(plan.row_blocks,
              ElementsAre(RowBlock{0, 2, 0, 4, 0, false},  //
                          RowBlock{0, 3, 4, 4, 1, false}, RowBlock{0, 4, 8, 1, 2, false},
                          RowBlock{1, 2, 0, 2, 0, false}));
  EXPECT_THAT(plan.cached_heads(0), ElementsAre());
  EXPECT_THAT(plan.live_heads(0), ElementsAre(0, 1, 2));
  EXPECT_THAT(plan.cached_heads(1), ElementsAre(1));
  EXPECT_THAT(plan.live_heads(1), ElementsAre(0, 2));
  EXPECT_THAT(plan.cached_heads(2), ElementsAre(0, 2));
  EXPECT_THAT(plan.live_heads(2), ElementsAre(1));
  EXPECT_EQ(plan.num_rows, 9);
  EXPECT_EQ(plan.num_q_blocks, 5);
  EXPECT_EQ(plan.total_rows, 3 * 11);
  EXPECT_EQ(plan.live_rows, 3 * 11 - 4 - 2);
}

TEST(GemmPlan, NotesRowBlocksWhoseCachedHeadsStayed) {
  Joint joint;
  joint.symbols.cache(0, 1, 0);
  SparseSymbols next = joint.symbols;
  next.cache(0, 2, 1);
  GemmPlan plan;
  build_gemm_plan(next, 0, 6, &joint.symbols, plan);
  ASSERT_EQ(plan.row_blocks.size(), 4u);
  EXPECT_TRUE(plan.row_blocks[0].same_as_previous);
  EXPECT_FALSE(plan.row_blocks[1].same_as_previous);
  EXPECT_TRUE(plan.row_blocks[2].same_as_previous);
}

TEST(GemmPlan, RejectsTokensThatAreNotBorders) {
  const Joint joint;
  GemmPlan plan;
  EXPECT_THROW(build_gemm_plan(joint.symbols, 5, 4, nullptr, plan), Error);
  EXPECT_THROW(build_gemm_plan(joint.symbols, 0, 5, nullptr, plan), Error);
  EXPECT_THROW(build_gemm_plan(joint.symbols, 0, 16, nullptr, plan), Error);
  EXPECT_THROW(build_gemm_plan(joint.symbols, 6, -2, nullptr, plan), Error);
  const SparseSymbols other(joint.grid, joint.grid, 4);
  EXPECT_THROW(build_gemm_plan(joint.symbols, 0, 6, &other, plan), Error);
}

}  // namespace
}  // namespace flashomni
