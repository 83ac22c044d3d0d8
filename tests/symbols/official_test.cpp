#include <random>
#include <string>
#include <string_view>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/symbols.h"

#include "errors.h"

namespace flashomni {
namespace {

using testing::ElementsAre;

// The worked example: 26 tokens in 7 blocks of 4, two heads; rows of 0 and 1, block 0 leftmost.
struct Example {
  const char* name;
  std::array<std::string_view, 2> cache;
  std::array<std::array<std::string_view, 7>, 2> skip;
  std::string_view cache_bytes, skip_bytes;
  int live_pairs;
};

constexpr std::string_view kAll = "1111111", kNone = "0000000";
constexpr Example kExamples[] = {
    {"A",
     {"1111100", "1110111"},
     {{{kAll, kAll, kAll, kAll, kAll, kNone, kNone},
       {kAll, kAll, kAll, kNone, "1111011", "1110111", "1101101"}}},
     "7F2B",
     "FFFFFFFFFFFF01FF37E00ED802",
     73},
    {"B",
     {"1110111", "1110111"},
     {{{kAll, kAll, kAll, kNone, kAll, "1110111", "1111101"},
       {kAll, kAll, kAll, kNone, "1111011", "1110111", "1101101"}}},
     "3F3F",
     "FFFFFFFFFF0300FFF7FDFEDD02",
     78},
    {"C",
     {"1010111", "1101011"},
     {{{"1101111", kNone, "0111111", kNone, "0111111", kAll, kAll},
       {"1111011", "1111011", kNone, "1011111", kNone, kAll, kAll}}},
     "9B3D",
     "FB37E0ED0700FA7EC0FFFFFF03",
     64},
    {"D",
     {"1111110", "1110111"},
     {{{kAll, kAll, "1111011", "1111101", "1111011", kAll, kNone},
       {kAll, kAll, "1111010", kNone, "1110011", "1110010", "1101101"}}},
     "7F2F",
     "FFFFFFFF7E7D01EFF3FF04D802",
     72},
    {"E",
     {"1111100", "1110111"},
     {{{kAll, kAll, "1110011", "1111101", "1111011", kNone, kNone},
       {kAll, kAll, "1111010", kNone, "1110011", "1110010", "1101101"}}},
     "7F2B",
     "FFFFFF7F7E7D01EF33E004D802",
     64},
};

BlockGrid example_grid() { return BlockGrid(4, 1, make_segments(26, 0, TextPosition::kNone)); }

SparseSymbols symbols_of(const Example& example) {
  std::vector<std::uint8_t> cache, skip;
  for (int head = 0; head < 2; ++head) {
    for (const char bit : example.cache[head]) cache.push_back(bit == '1');
    for (const std::string_view row : example.skip[head]) {
      for (const char bit : row) skip.push_back(bit == '1');
    }
  }
  return SparseSymbols::from_masks(example_grid(), example_grid(), 2,
                                   ConstTensorView(cache.data(), DType::kU8, {1, 2, 7}),
                                   ConstTensorView(skip.data(), DType::kU8, {1, 2, 7, 7}));
}

std::string hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    for (const int nibble : {byte >> 4, byte & 15}) text += "0123456789ABCDEF"[nibble];
  }
  return text;
}

TEST(OfficialSymbols, WorkedExamplesGiveThePublishedBytes) {
  for (const Example& example : kExamples) {
    SCOPED_TRACE(example.name);
    const SparseSymbols symbols = symbols_of(example);
    const OfficialSymbols official = export_official(symbols);
    EXPECT_EQ(hex(official.cache), example.cache_bytes);
    EXPECT_EQ(hex(official.skip), example.skip_bytes);
    EXPECT_THAT(official.cache_indptr, ElementsAre(0, 2));
    EXPECT_THAT(official.skip_indptr, ElementsAre(0, 13));
    EXPECT_EQ(symbols.stats().live_block_pairs, example.live_pairs);
    EXPECT_EQ(import_official(example_grid(), example_grid(), 2, official), symbols);
  }
}

TEST(SparseSymbols, WordsOfWorkedExampleA) {
  const SparseSymbols symbols = symbols_of(kExamples[0]);
  EXPECT_THAT(symbols.cache_words(), ElementsAre(3, 3, 3, 1, 3, 2, 2));
  EXPECT_THAT(symbols.skip_words(), ElementsAre(0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0, 0,  // head 0
                                                0x7f, 0x7f, 0x7f, 0, 0x6f, 0x77, 0x5b));
}

TEST(OfficialSymbols, RaggedItemsHaveSegmentsOfTheirOwnLength) {
  const std::vector<int> lengths = {18, 9};
  const auto segments = make_segments(18, 0, TextPosition::kNone);
  const BlockGrid q_grid(4, 2, segments, lengths), kv_grid(8, 2, segments, lengths);
  SparseSymbols symbols(q_grid, kv_grid, 3);
  std::mt19937 random(2);
  for (int item = 0; item < 2; ++item) {
    for (int head = 0; head < 3; ++head) {
      for (int q = 0; q < 5; ++q) {
        if (random() % 3 == 0) symbols.cache(item, head, q);
        symbols.skip(item, head, q, static_cast<int>(random() % 3));
      }
    }
  }
  const OfficialSymbols official = export_official(symbols);
  EXPECT_THAT(official.cache_indptr, ElementsAre(0, 2, 2 + 2));  // 15 and 9 bits
  EXPECT_THAT(official.skip_indptr, ElementsAre(0, 6, 6 + 3));   // 45 and 18 bits
  EXPECT_EQ(import_official(q_grid, kv_grid, 3, official), symbols);
}

TEST(OfficialSymbols, SkipBitsOfCachedBlocksAreIgnoredOnImport) {
  OfficialSymbols official = export_official(symbols_of(kExamples[0]));
  official.skip[6] |= 0x02;  // bit 49: q block 3, head 1, which is cached
  EXPECT_EQ(import_official(example_grid(), example_grid(), 2, official), symbols_of(kExamples[0]));
}

std::string import_error(const OfficialSymbols& official) {
  return test::error_of([&] { import_official(example_grid(), example_grid(), 2, official); });
}

TEST(OfficialSymbols, ImportNamesWhatDoesNotFit) {
  const OfficialSymbols good = export_official(symbols_of(kExamples[0]));
  OfficialSymbols bad = good;
  bad.cache_indptr = {0, 3};
  EXPECT_EQ(import_error(bad),
            "import_official: cache of item 0 is bytes [0, 3) of 2, expected 2 bytes");
  bad = good;
  bad.skip.pop_back();
  EXPECT_EQ(import_error(bad),
            "import_official: skip of item 0 is bytes [0, 13) of 12, expected 13 bytes");
  bad = good;
  bad.cache_indptr = {0};
  EXPECT_EQ(import_error(bad), "import_official: the indptrs have 1 and 2 entries, expected 2");
  bad = good;
  bad.skip.back() |= 0x80;
  EXPECT_EQ(import_error(bad), "import_official: padding bit 103 of skip of item 0 is set");
}

}  // namespace
}  // namespace flashomni
