#include "flashomni/symbols.h"

#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "errors.h"

namespace flashomni {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

BlockGrid image_grid(int block, int tokens, std::vector<int> lengths) {
  return BlockGrid(block, static_cast<int>(lengths.size()),
                   make_segments(tokens, 0, TextPosition::kNone), lengths);
}

struct Masks {
  std::vector<std::uint8_t> cache, skip;
  bool operator==(const Masks&) const = default;
};

Masks masks_of(const SparseSymbols& symbols) {
  const std::size_t rows = static_cast<std::size_t>(symbols.q_grid().batch()) *
                           symbols.num_heads() * symbols.q_grid().num_blocks();
  Masks masks{std::vector<std::uint8_t>(rows),
              std::vector<std::uint8_t>(rows * symbols.kv_grid().num_blocks())};
  symbols.to_masks(masks.cache, masks.skip);
  return masks;
}

SparseSymbols from_masks(const BlockGrid& q_grid, const BlockGrid& kv_grid, int num_heads,
                         Masks& masks) {
  const index_t batch = q_grid.batch(), q_blocks = q_grid.num_blocks();
  return SparseSymbols::from_masks(
      q_grid, kv_grid, num_heads,
      ConstTensorView(masks.cache.data(), DType::kU8, {batch, num_heads, q_blocks}),
      ConstTensorView(masks.skip.data(), DType::kU8,
                      {batch, num_heads, q_blocks, kv_grid.num_blocks()}));
}

// 33 heads need two cache words, 40 kv blocks two skip words; item 1 is shorter than item 0.
struct Wide {
  BlockGrid q_grid = image_grid(4, 18, {18, 9}), kv_grid = image_grid(4, 160, {160, 101});
  SparseSymbols symbols{q_grid, kv_grid, 33};
};

TEST(SparseSymbols, AreBornAllLiveAndCanonical) {
  const Wide wide;
  EXPECT_THAT(wide.symbols.cache_row(0, 0), ElementsAre(0xffffffffu, 1u));
  EXPECT_THAT(wide.symbols.cache_row(1, 2), ElementsAre(0xffffffffu, 1u));
  EXPECT_THAT(wide.symbols.cache_row(1, 3), ElementsAre(0u, 0u)) << "past the item's length";
  EXPECT_THAT(wide.symbols.skip_row(0, 32, 4), ElementsAre(0xffffffffu, 0xffu));
  EXPECT_THAT(wide.symbols.skip_row(1, 0, 0), ElementsAre(0x03ffffffu, 0u));
  EXPECT_THAT(wide.symbols.skip_row(1, 0, 3), ElementsAre(0u, 0u));
}

TEST(SparseSymbols, CachingABlockClearsItsSkipRow) {
  Wide wide;
  wide.symbols.cache(0, 32, 1);
  EXPECT_FALSE(wide.symbols.is_live(0, 32, 1));
  EXPECT_THAT(wide.symbols.cache_row(0, 1), ElementsAre(0xffffffffu, 0u));
  EXPECT_THAT(wide.symbols.skip_row(0, 32, 1), ElementsAre(0u, 0u));
  EXPECT_THAT(wide.symbols.skip_row(0, 31, 1), ElementsAre(0xffffffffu, 0xffu));

  wide.symbols.set_skip_row(0, 32, 1, std::vector<std::uint8_t>(40, 1));
  EXPECT_THAT(wide.symbols.skip_row(0, 32, 1), ElementsAre(0u, 0u));
}

TEST(SparseSymbols, ALiveRowMayHaveNothingToAttendTo) {
  Wide wide;
  wide.symbols.set_skip_row(0, 3, 2, std::vector<std::uint8_t>(40, 0));
  EXPECT_TRUE(wide.symbols.is_live(0, 3, 2));
  EXPECT_THAT(wide.symbols.skip_row(0, 3, 2), ElementsAre(0u, 0u));
}

TEST(SparseSymbols, SetSkipRowIgnoresBlocksPastTheLength) {
  Wide wide;
  wide.symbols.set_skip_row(1, 0, 0, std::vector<std::uint8_t>(40, 1));
  EXPECT_THAT(wide.symbols.skip_row(1, 0, 0), ElementsAre(0x03ffffffu, 0u));
}

TEST(SparseSymbols, MasksSurviveARoundTrip) {
  const Wide wide;
  std::mt19937 random(1);
  Masks masks = masks_of(wide.symbols);
  for (auto& bit : masks.cache) bit = random() % 2;
  for (auto& bit : masks.skip) bit = random() % 2;
  const SparseSymbols symbols = from_masks(wide.q_grid, wide.kv_grid, 33, masks);
  Masks canonical = masks_of(symbols);
  EXPECT_NE(masks, canonical) << "bits of cached and of empty blocks are dropped";
  EXPECT_EQ(from_masks(wide.q_grid, wide.kv_grid, 33, canonical), symbols);
  for (std::size_t i = 0; i < masks.skip.size(); ++i) {
    EXPECT_LE(canonical.skip[i], masks.skip[i] & masks.cache[i / 40]);
  }
}

TEST(SparseSymbols, AbsentMasksMeanAllLive) {
  const Wide wide;
  EXPECT_EQ(SparseSymbols::from_masks(wide.q_grid, wide.kv_grid, 33, {}, {}), wide.symbols);
}

TEST(SparseSymbols, WordsSurviveARoundTrip) {
  Wide wide;
  wide.symbols.cache(1, 5, 0);
  wide.symbols.skip(0, 32, 4, 39);
  SparseSymbols copy(wide.q_grid, wide.kv_grid, 33);
  copy.import_words(wide.symbols.cache_words(), wide.symbols.skip_words());
  EXPECT_EQ(copy, wide.symbols);
}

TEST(SparseSymbols, ImportRejectsWordsThatAreNotCanonical) {
  Wide wide;
  const auto import_changed = [&](int cache_word, std::uint32_t cache, int skip_word,
                                  std::uint32_t skip) {
    std::vector<std::uint32_t> caches(wide.symbols.cache_words().begin(),
                                      wide.symbols.cache_words().end());
    std::vector<std::uint32_t> skips(wide.symbols.skip_words().begin(),
                                     wide.symbols.skip_words().end());
    caches[cache_word] = cache;
    skips[skip_word] = skip;
    return test::error_of([&] { wide.symbols.import_words(caches, skips); });
  };
  EXPECT_EQ(import_changed(1, 3, 0, 0),
            "import_words: cache word 1 is 0x00000003, bits 0x00000002 must be 0");
  EXPECT_EQ(import_changed(16, 1, 0, 0),  // item 1, q block 3: past its length
            "import_words: cache word 16 is 0x00000001, bits 0x00000001 must be 0");
  EXPECT_EQ(import_changed(0, ~0u, 1, 0x100),
            "import_words: skip word 1 is 0x00000100, bits 0x00000100 must be 0");
  EXPECT_EQ(import_changed(0, ~1u, 0, 4),  // head 0 of q block 0 is cached
            "import_words: skip word 0 is 0x00000004, bits 0x00000004 must be 0");
  EXPECT_THAT(test::error_of([&] { wide.symbols.import_words({}, {}); }),
              HasSubstr("0 cache and 0 skip words, expected 20 and 660"));
}

TEST(SparseSymbols, FromMasksNamesWhatIsWrong) {
  const Wide wide;
  const auto from = [&](ConstTensorView cache, ConstTensorView skip) {
    return test::error_of(
        [&] { SparseSymbols::from_masks(wide.q_grid, wide.kv_grid, 33, cache, skip); });
  };
  std::vector<std::uint8_t> bytes(2 * 33 * 5 * 40, 1);
  EXPECT_EQ(from({bytes.data(), DType::kU8, {2, 5, 33}}, {}),
            "from_masks: cache is [2, 5, 33], expected [2, 33, 5]");
  EXPECT_EQ(from({bytes.data(), DType::kI32, {2, 33, 5}}, {}),
            "from_masks: cache is i32, expected u8");
  EXPECT_EQ(from({}, {bytes.data(), DType::kU8, {2, 33, 5, 39}}),
            "from_masks: skip is [2, 33, 5, 39], expected [2, 33, 5, 40]");
  EXPECT_EQ(from({bytes.data(), DType::kU8, {2, 33, 5}, {DeviceType::kCuda, 0}}, {}),
            "from_masks: cache must be in host memory");
  ConstTensorView strided(bytes.data(), DType::kU8, {2, 33, 5});
  strided.layout.strides[1] = 6;
  EXPECT_EQ(from(strided, {}), "from_masks: cache must be contiguous");
  bytes[7] = 2;
  EXPECT_EQ(from({bytes.data(), DType::kU8, {2, 33, 5}}, {}),
            "from_masks: cache holds 2 at element 7, expected 0 or 1");
}

TEST(SparseSymbols, RejectsGridsThatDoNotBelongTogether) {
  EXPECT_EQ(test::error_of([] {
              SparseSymbols(image_grid(4, 8, {8}), image_grid(4, 8, {8, 8}), 2);
            }),
            "SparseSymbols: the kv grid has a batch of 2, the q grid of 1");
  EXPECT_EQ(test::error_of([] { SparseSymbols(image_grid(4, 8, {8}), image_grid(4, 8, {8}), 0); }),
            "SparseSymbols: num_heads is 0, must be at least 1");
}

TEST(SymbolStats, CountBlocksAndTokenPairs) {
  // q blocks of 4, 2 tokens; kv blocks of 4, 4, 1 tokens; two heads.
  SparseSymbols symbols(image_grid(4, 6, {6}), image_grid(4, 9, {9}), 2);
  symbols.cache(0, 0, 0);
  symbols.skip(0, 1, 0, 1);
  symbols.skip(0, 1, 1, 2);
  const SymbolStats stats = symbols.stats();
  EXPECT_EQ(stats.q_blocks, 4);
  EXPECT_EQ(stats.live_q_blocks, 3);
  EXPECT_EQ(stats.block_pairs, 12);
  EXPECT_EQ(stats.live_block_pairs, 3 + 2 + 2);
  EXPECT_EQ(stats.pairs, 2 * 6 * 9);
  EXPECT_EQ(stats.pairs_in_live_rows, 2 * 9 + 6 * 9);
  EXPECT_EQ(stats.live_pairs, 2 * 9 + 4 * 5 + 2 * 8);
  EXPECT_DOUBLE_EQ(stats.live_fraction(), 3.0 / 4);
  EXPECT_DOUBLE_EQ(stats.cached_fraction(), 36.0 / 108);
  EXPECT_DOUBLE_EQ(stats.skipped_fraction(), (72.0 - 54) / 72);
  EXPECT_DOUBLE_EQ(stats.density(), 54.0 / 108);
}

// docs/symbols.md walks through this one.
TEST(SparseSymbols, AgreeWithTheExampleOfTheDocument) {
  Masks masks{{1, 1, 0, 1, 0, 1},
              {1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1}};
  const BlockGrid q_grid = image_grid(4, 10, {10}), kv_grid = image_grid(4, 15, {15});
  const SparseSymbols symbols = from_masks(q_grid, kv_grid, 2, masks);
  EXPECT_THAT(symbols.cache_words(), ElementsAre(3, 1, 2));
  EXPECT_THAT(symbols.skip_words(), ElementsAre(0xb, 0xf, 0, 6, 0, 9));

  const SymbolStats stats = symbols.stats();
  EXPECT_DOUBLE_EQ(stats.live_fraction(), 4.0 / 6);
  EXPECT_DOUBLE_EQ(stats.cached_fraction(), 90.0 / 300);
  EXPECT_DOUBLE_EQ(stats.skipped_fraction(), 60.0 / 210);
  EXPECT_DOUBLE_EQ(stats.density(), 150.0 / 300);

  const OfficialSymbols official = export_official(symbols);
  EXPECT_THAT(official.cache, ElementsAre(0x27));
  EXPECT_THAT(official.skip, ElementsAre(0x6b, 0x0f, 0x90));
  EXPECT_THAT(official.cache_indptr, ElementsAre(0, 1));
  EXPECT_THAT(official.skip_indptr, ElementsAre(0, 3));
}

TEST(SymbolStats, LeaveOutWhatIsPastALength) {
  const SparseSymbols symbols(image_grid(4, 8, {8, 5}), image_grid(4, 8, {8, 3}), 1);
  const SymbolStats stats = symbols.stats();
  EXPECT_EQ(stats.q_blocks, 4);
  EXPECT_EQ(stats.block_pairs, 4 + 2);
  EXPECT_EQ(stats.pairs, 64 + 15);
  EXPECT_DOUBLE_EQ(stats.density(), 1);
}

TEST(SymbolStats, OfNothingAreDenseAndNotNan) {
  const SymbolStats stats = SparseSymbols(image_grid(4, 8, {0}), image_grid(4, 8, {0}), 1).stats();
  EXPECT_EQ(stats.pairs, 0);
  EXPECT_EQ(stats.live_fraction(), 1);
  EXPECT_EQ(stats.cached_fraction(), 0);
  EXPECT_EQ(stats.skipped_fraction(), 0);
  EXPECT_EQ(stats.density(), 1);
}

}  // namespace
}  // namespace flashomni
