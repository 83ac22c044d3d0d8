#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/error.h"
#include "flashomni/symbols.h"

namespace flashomni {
namespace {

using testing::ElementsAre;

std::vector<Block> blocks_of(const BlockGrid& grid, int item) {
  std::vector<Block> blocks;
  for (int index = 0; index < grid.num_blocks(); ++index) blocks.push_back(grid.at(item, index));
  return blocks;
}

TEST(MakeSegments, PutsTheTextWhereItIsAskedTo) {
  const Segment image{SegmentKind::kImage, 7}, text{SegmentKind::kText, 3};
  EXPECT_THAT(make_segments(10, 3, TextPosition::kFirst), ElementsAre(text, image));
  EXPECT_THAT(make_segments(10, 3, TextPosition::kLast), ElementsAre(image, text));
  EXPECT_THAT(make_segments(7, 0, TextPosition::kNone), ElementsAre(image));
  EXPECT_THAT(make_segments(3, 3, TextPosition::kLast), ElementsAre(text));
}

TEST(MakeSegments, RejectsTextThatDoesNotFit) {
  EXPECT_THROW(make_segments(10, 11, TextPosition::kFirst), Error);
  EXPECT_THROW(make_segments(10, -1, TextPosition::kFirst), Error);
  EXPECT_THROW(make_segments(10, 3, TextPosition::kNone), Error);
}

TEST(BlockGrid, RestartsAtTheBorderOfTextAndImage) {
  const BlockGrid grid(4, 1, make_segments(15, 6, TextPosition::kFirst));
  EXPECT_THAT(blocks_of(grid, 0),
              ElementsAre(Block{0, 4}, Block{4, 2}, Block{6, 4}, Block{10, 4}, Block{14, 1}));
  EXPECT_TRUE(grid.is_text(0, 1));
  EXPECT_FALSE(grid.is_text(0, 2));
  EXPECT_TRUE(grid.has_text(0));
}

TEST(BlockGrid, BlocksPastALengthKeepTheirIndexAndAreEmpty) {
  const std::vector<int> lengths = {9, 5, 0};
  const BlockGrid grid(4, 3, make_segments(9, 0, TextPosition::kNone), lengths);
  EXPECT_THAT(blocks_of(grid, 0), ElementsAre(Block{0, 4}, Block{4, 4}, Block{8, 1}));
  EXPECT_THAT(blocks_of(grid, 1), ElementsAre(Block{0, 4}, Block{4, 1}, Block{8, 0}));
  EXPECT_THAT(blocks_of(grid, 2), ElementsAre(Block{0, 0}, Block{4, 0}, Block{8, 0}));
  EXPECT_EQ(grid.length(1), 5);
}

TEST(BlockGrid, TextPastALengthIsNoText) {
  const std::vector<int> lengths = {9, 6};
  const BlockGrid grid(4, 2, make_segments(9, 3, TextPosition::kLast), lengths);
  EXPECT_TRUE(grid.has_text(0));
  EXPECT_FALSE(grid.has_text(1));
}

TEST(BlockGrid, RaggedItemsArePaddedToTheLongest) {
  const std::vector<std::vector<Segment>> items = {make_segments(10, 3, TextPosition::kFirst),
                                                   make_segments(5, 0, TextPosition::kNone)};
  const BlockGrid grid(4, items);
  EXPECT_EQ(grid.num_tokens(), 10);
  EXPECT_THAT(blocks_of(grid, 0), ElementsAre(Block{0, 3}, Block{3, 4}, Block{7, 3}));
  EXPECT_THAT(blocks_of(grid, 1), ElementsAre(Block{0, 4}, Block{4, 1}, Block{5, 0}));
  EXPECT_EQ(grid.length(1), 5);
}

TEST(BlockGrid, FindsTheBlockThatStartsAtAToken) {
  const BlockGrid grid(4, 2, make_segments(15, 6, TextPosition::kFirst), std::vector<int>{15, 3});
  EXPECT_EQ(grid.block_starting_at(0), 0);
  EXPECT_EQ(grid.block_starting_at(6), 2);
  EXPECT_EQ(grid.block_starting_at(15), 5);
  EXPECT_THROW(grid.block_starting_at(5), Error);
  EXPECT_THROW(grid.block_starting_at(-1), Error);
  EXPECT_THROW(grid.block_starting_at(16), Error);
}

TEST(BlockGrid, RaggedItemsMustAgreeOnABorderUnlessTheyEndedBefore) {
  const std::vector<std::vector<Segment>> items = {make_segments(12, 0, TextPosition::kNone),
                                                   make_segments(5, 0, TextPosition::kNone),
                                                   make_segments(11, 3, TextPosition::kFirst)};
  EXPECT_EQ(BlockGrid(4, std::span(items).first(2)).block_starting_at(8), 2);
  EXPECT_THROW(BlockGrid(4, items).block_starting_at(8), Error);
}

TEST(BlockGrid, RejectsImpossibleSizes) {
  const auto segments = make_segments(9, 0, TextPosition::kNone);
  EXPECT_THROW(BlockGrid(0, 1, segments), Error);
  EXPECT_THROW(BlockGrid(4, 0, segments), Error);
  EXPECT_THROW(BlockGrid(4, 1, segments, std::vector<int>{10}), Error);
  EXPECT_THROW(BlockGrid(4, 1, segments, std::vector<int>{-1}), Error);
  EXPECT_THROW(BlockGrid(4, 2, segments, std::vector<int>{9}), Error);
  EXPECT_THROW(BlockGrid(4, 1, std::vector<Segment>{{SegmentKind::kImage, -1}}), Error);
}

TEST(BlockGrid, OfNoTokensHasNoBlocks) {
  const BlockGrid grid(4, 1, {});
  EXPECT_EQ(grid.num_blocks(), 0);
  EXPECT_EQ(grid.block_starting_at(0), 0);
}

}  // namespace
}  // namespace flashomni
