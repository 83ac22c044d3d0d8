// Skip policies against definitions of another shape: token by token over the whole picture or
// video, where the policies work on blocks.
#include <cmath>
#include <functional>
#include <random>

#include "gmock/gmock.h"

#include "flashomni/policy.h"

#include "errors.h"

namespace flashomni {
namespace {

// Image tokens i and j, by their number in the sequence.
using TokenRule = std::function<bool(int i, int j)>;

struct Scene {
  TokenGrid grid;
  TokenOrder order = TokenOrder::kRaster;
  TextPosition text = TextPosition::kFirst;
  int text_tokens = 11, block_q = 16, block_kv = 16;

  std::vector<TokenPlace> places() const { return place_tokens(grid, order, block_kv); }
  int image_tokens() const { return grid.frames * grid.height * grid.width; }
  int first_image_token() const { return text == TextPosition::kFirst ? text_tokens : 0; }
  BlockGrid blocks(int block) const {
    return {block, 1, make_segments(image_tokens() + text_tokens, text_tokens, text)};
  }
  SparseSymbols symbols() const { return {blocks(block_q), blocks(block_kv), 2}; }

  SparseSymbols select(const std::string& policy, const PolicyOptions& options) const {
    SparseSymbols selected = symbols();
    const std::vector<TokenPlace> where = places();
    make_policy(policy, options)->select({.places = where}, selected);
    return selected;
  }
};

// Pictures and videos, both orders, ragged blocks and unequal ones.
const Scene kScenes[] = {
    {.grid = {1, 12, 20}},
    {.grid = {1, 16, 16}, .order = TokenOrder::kTile},
    {.grid = {1, 10, 13}, .text = TextPosition::kLast, .block_q = 8, .block_kv = 32},
    {.grid = {1, 9, 11}, .order = TokenOrder::kTile, .text = TextPosition::kNone, .text_tokens = 0},
    {.grid = {5, 6, 8}},
    {.grid = {6, 8, 8}, .order = TokenOrder::kTile, .block_q = 32},
};

// A pair of image blocks is used if a pair of its tokens is; text rows and columns always.
SparseSymbols by_tokens(const Scene& scene, const TokenRule& rule) {
  SparseSymbols symbols = scene.symbols();
  const BlockGrid &q_grid = symbols.q_grid(), &kv_grid = symbols.kv_grid();
  for (int i = 0; i < q_grid.num_blocks(); ++i) {
    for (int j = 0; j < kv_grid.num_blocks(); ++j) {
      bool used = q_grid.is_text(0, i) || kv_grid.is_text(0, j);
      const Block q = q_grid.at(0, i), kv = kv_grid.at(0, j);
      for (int a = q.start; a < q.start + q.count && !used; ++a) {
        for (int b = kv.start; b < kv.start + kv.count && !used; ++b) {
          used = rule(a - scene.first_image_token(), b - scene.first_image_token());
        }
      }
      for (int head = 0; head < 2 && !used; ++head) symbols.skip(0, head, i, j);
    }
  }
  return symbols;
}

void expect_sparse_between(const SparseSymbols& symbols, double low, double high) {
  EXPECT_GT(symbols.stats().density(), low);
  EXPECT_LT(symbols.stats().density(), high);
}

TEST(ArrowWindow, IsABandOfTokensWithTextRowsAndColumns) {
  for (const Scene& scene : kScenes) {
    // The last is a half width of 17 of 256 tokens: one token of the block after the next.
    for (const char* band : {"0", ".25", ".1328125"}) {
      const double width = std::stod(band) * scene.image_tokens();
      EXPECT_EQ(scene.select("arrow-window", {{"band", band}}),
                by_tokens(scene, [&](int i, int j) { return 2 * std::abs(i - j) <= width; }));
    }
    EXPECT_EQ(scene.select("arrow-window", {{"band", "2"}}), scene.symbols());
  }
  expect_sparse_between(kScenes[0].select("arrow-window", {}), .3, .9);
}

TEST(Streaming, IsASinkAndAWindowOfBlocks) {
  for (const Scene& scene : kScenes) {
    for (const auto& [sink, window] : {std::pair(0, 0), std::pair(2, 1), std::pair(1, 3)}) {
      const int block = scene.block_kv;
      // Some token of the query block is within `window` blocks. Its block may hold fewer tokens
      // than the keys', which is why the rule is about tokens.
      const auto rule = [&, sink = sink, window = window](int i, int j) {
        return j / block < sink || std::abs(i / block - j / block) <= window;
      };
      EXPECT_EQ(scene.select("streaming", {{"sink-blocks", std::to_string(sink)},
                                           {"window-blocks", std::to_string(window)}}),
                by_tokens(scene, rule));
    }
    EXPECT_EQ(scene.select("streaming", {{"window-blocks", "1000"}}), scene.symbols());
  }
}

// The source's own words: the window's centre is the query's tile, moved inwards at the border.
bool sta_sees(int q_tile, int kv_tile, int window, int num_tiles) {
  if (window >= num_tiles) return true;
  const int half = window / 2;
  const int centre = std::min(std::max(q_tile, half), num_tiles - 1 - half);
  return std::abs(kv_tile - centre) <= half;
}

TEST(SlidingTile, IsAWindowOfTilesMovedInwardsAtTheBorder) {
  const TokenGrid tile{2, 4, 4};
  for (const Scene& scene : kScenes) {
    const auto tiles = [](int size, int of) { return (size + of - 1) / of; };
    const std::vector<TokenPlace> places = scene.places();
    for (const int window : {1, 3}) {
      const auto rule = [&](int i, int j) {
        const TokenPlace &q = places[i], &kv = places[j];
        return sta_sees(q.frame / 2, kv.frame / 2, 3, tiles(scene.grid.frames, 2)) &&
               sta_sees(q.row / 4, kv.row / 4, window, tiles(scene.grid.height, 4)) &&
               sta_sees(q.column / 4, kv.column / 4, window, tiles(scene.grid.width, 4));
      };
      const std::string size = std::to_string(window);
      EXPECT_EQ(scene.select("sliding-tile",
                             {{"tile", "2x4x4"}, {"tile-window", "3x" + size + "x" + size}}),
                by_tokens(scene, rule));
    }
    EXPECT_EQ(scene.select("sliding-tile", {{"tile-window", "99x99x99"}}), scene.symbols());
  }
  expect_sparse_between(kScenes[1].select("sliding-tile", {{"tile", "4x4"}}), .3, .9);
}

// Port of the published gen_log_mask_shrinked: a mask over all tokens, frame pair by frame pair,
// then shrunk to blocks by column densities. `position` within a frame, `frame_of` each token.
bool radial_sees(int frame_a, int frame_b, int a, int b, int frame_tokens, int band, double decay) {
  const auto bit_length = [](int n) {
    int bits = 0;
    for (; n > 0; n /= 2) ++bits;
    return bits;
  };
  const int dist = std::abs(frame_a - frame_b);
  double window = frame_tokens;
  if (dist > 1) {
    const double decay_length =
        std::pow(2, bit_length(frame_tokens)) / std::pow(2, bit_length(dist)) * decay;
    window = decay_length >= band ? decay_length : band;
    const double plain = std::pow(2, bit_length(frame_tokens)) / std::pow(2, bit_length(dist));
    if (plain < band && dist % static_cast<int>(band / plain) != 0) return false;
  }
  return std::abs(a - b) <= window;
}

TEST(Radial, IsTheShrunkMaskOfThePublishedCode) {
  const Scene scenes[] = {kScenes[0],
                          kScenes[1],
                          kScenes[3],
                          kScenes[4],
                          {.grid = {17, 8, 10}},
                          {.grid = {16, 4, 16}, .text_tokens = 3, .block_kv = 8}};
  for (const Scene& scene : scenes) {
    const bool video = scene.grid.frames > 1;
    const int frame_tokens = video ? scene.grid.height * scene.grid.width : scene.grid.width;
    const std::vector<TokenPlace> places = scene.places();
    for (const double decay : {.25, 1.0}) {
      SparseSymbols expected = scene.symbols();
      const BlockGrid &q_grid = expected.q_grid(), &kv_grid = expected.kv_grid();
      const auto sees = [&](int a, int b) {
        const TokenPlace &q = places[a - scene.first_image_token()],
                         &kv = places[b - scene.first_image_token()];
        const auto frame = [&](const TokenPlace& p) { return video ? p.frame : p.row; };
        const auto at = [&](const TokenPlace& p) {
          return video ? p.row * scene.grid.width + p.column : p.column;
        };
        return radial_sees(frame(q), frame(kv), at(q), at(kv), frame_tokens,
                           std::min(scene.block_kv, frame_tokens / 8), decay);
      };
      for (int i = 0; i < q_grid.num_blocks(); ++i) {
        for (int j = 0; j < kv_grid.num_blocks(); ++j) {
          if (q_grid.is_text(0, i) || kv_grid.is_text(0, j)) continue;
          const Block q = q_grid.at(0, i), kv = kv_grid.at(0, j);
          double non_zero = 0, high = 0;
          for (int b = kv.start; b < kv.start + kv.count; ++b) {
            double density = 0;
            for (int a = q.start; a < q.start + q.count; ++a) density += sees(a, b);
            density /= q.count;
            non_zero += density > 0;
            high += density > 1.0 / 3;
          }
          if (high / (non_zero + 1e-9) > .6) continue;
          for (int head = 0; head < 2; ++head) expected.skip(0, head, i, j);
        }
      }
      EXPECT_EQ(scene.select("radial", {{"decay", std::to_string(decay)}}), expected);
    }
  }
  expect_sparse_between(scenes[4].select("radial", {}), .1, .8);
}

TEST(PoliciesOfPlaces, SkipNothingWhereTheyAreUnknown) {
  const Scene scene = kScenes[0];
  for (const char* name : {"sliding-tile", "radial"}) {
    SparseSymbols symbols = scene.symbols();
    const auto policy = make_policy(name, {});
    policy->select({}, symbols);
    EXPECT_EQ(symbols, scene.symbols());
    EXPECT_EQ(policy->limitation(symbols.q_grid(), {}),
              "the model does not say where the image tokens stand: " + std::string(name) +
                  " skips nothing");
    EXPECT_EQ(policy->limitation(symbols.q_grid(), scene.places()), "");
  }
}

BlockScores random_scores(const SparseSymbols& symbols, unsigned seed) {
  const int q = symbols.q_grid().num_blocks(), kv = symbols.kv_grid().num_blocks();
  BlockScores scores{.batch = 1, .num_heads = 2, .num_q_blocks = q, .num_kv_blocks = kv};
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> logit(-4, 4);  // with ties
  std::uniform_real_distribution<float> cosine(0, 1);
  for (int i = 0; i < 2 * q * kv; ++i) scores.logits.push_back(static_cast<float>(logit(random)));
  for (int i = 0; i < 2 * q; ++i) scores.q_similarity.push_back(cosine(random));
  for (int i = 0; i < 2 * kv; ++i) scores.k_similarity.push_back(cosine(random));
  return scores;
}

SparseSymbols select_by(const std::string& policy, const PolicyOptions& options,
                        const BlockScores& scores, SparseSymbols symbols, double ramp = 1) {
  make_policy(policy, options)->select({.ramp = ramp, .scores = &scores}, symbols);
  return symbols;
}

// Kept is what fewer than `count` keys beat, counted key by key.
TEST(TopK, KeepsTheLargestLogitsAndText) {
  for (const Scene& scene : kScenes) {
    const SparseSymbols all = scene.symbols();
    const BlockScores scores = random_scores(all, 1);
    const int kv_blocks = all.kv_grid().num_blocks();
    for (const double keep : {0.0, .2, .5}) {
      const int count = std::max(1, static_cast<int>(std::floor(keep * kv_blocks + 1e-9)));
      SparseSymbols expected = all;
      for (int row = 0; row < 2 * all.q_grid().num_blocks(); ++row) {
        const int head = row % 2, i = row / 2;
        const auto logits = scores.logits_row(0, head, i);
        for (int j = 0; j < kv_blocks; ++j) {
          int ahead = 0;
          for (int n = 0; n < kv_blocks; ++n) {
            ahead += logits[n] > logits[j] || (logits[n] == logits[j] && n < j);
          }
          const bool text = all.q_grid().is_text(0, i) || all.kv_grid().is_text(0, j);
          if (ahead >= count && !text) expected.skip(0, head, i, j);
        }
      }
      EXPECT_EQ(select_by("topk", {{"keep", std::to_string(keep)}}, scores, all), expected);
    }
    EXPECT_EQ(select_by("topk", {{"keep", "1"}}, scores, all), all);
    EXPECT_EQ(select_by("topk", {{"keep", ".2"}}, scores, all, .5),
              select_by("topk", {{"keep", ".6"}}, scores, all))
        << "the ramp scales what is left out";
  }
}

TEST(TopK, LeavesRowsLiveThatAreNotFinite) {
  const SparseSymbols all = kScenes[0].symbols();
  BlockScores scores = random_scores(all, 2);
  scores.logits.assign(scores.logits.size(), NAN);
  EXPECT_EQ(select_by("topk", {{"keep", "0.1"}}, scores, all), all);
}

// A key is kept if those that beat it, itself apart, do not yet hold more than cdf of the mass.
TEST(SpargeAttn, KeepsTheSmallestSetOfKeysOfMassCdf) {
  for (const Scene& scene : kScenes) {
    const SparseSymbols all = scene.symbols();
    BlockScores scores = random_scores(all, 3);
    std::mt19937 random(4);
    std::normal_distribution<float> logit(0, 2);
    for (float& value : scores.logits) value = logit(random);  // without ties
    const int q_blocks = all.q_grid().num_blocks(), kv_blocks = all.kv_grid().num_blocks();
    for (const double threshold : {-1.0, .4}) {
      SparseSymbols expected = all;
      for (int row = 0; row < 2 * q_blocks; ++row) {
        const int head = row % 2, i = row / 2;
        if (scores.q_similarity[head * q_blocks + i] <= threshold) continue;
        const auto logits = scores.logits_row(0, head, i);
        const auto judged = [&](int j) {
          return scores.k_similarity[head * kv_blocks + j] > threshold;
        };
        double total = 0;
        for (int j = 0; j < kv_blocks; ++j) total += judged(j) ? std::exp(double(logits[j])) : 0;
        for (int j = 0; j < kv_blocks; ++j) {
          double ahead = 0;
          for (int n = 0; n < kv_blocks; ++n) {
            if (judged(n) && logits[n] > logits[j]) ahead += std::exp(double(logits[n])) / total;
          }
          const bool text = all.q_grid().is_text(0, i) || all.kv_grid().is_text(0, j);
          if (judged(j) && ahead >= .7 && !text) expected.skip(0, head, i, j);
        }
      }
      const PolicyOptions options = {{"cdf", ".7"}, {"sim-threshold", std::to_string(threshold)}};
      EXPECT_EQ(select_by("spargeattn", options, scores, all), expected);
      EXPECT_LT(expected.stats().density(), 1);
    }
    EXPECT_EQ(select_by("spargeattn", {{"cdf", "1"}}, scores, all), all);
  }
}

TEST(SpargeAttn, IsPublishedWithTheseSettings) {
  EXPECT_EQ(make_policy("spargeattn", {})->needs(),
            (BlockScoreOptions{.similarity = true, .subtract_k_mean = true}));
  EXPECT_EQ(make_policy("spargeattn", {{"cdf", "1"}})->needs(), std::nullopt);
}

TEST(SkipPolicies, NameTheValuesAllowed) {
  const auto error = [](const char* policy, const PolicyOptions& options) {
    return test::error_of([&] { make_policy(policy, options); });
  };
  EXPECT_EQ(error("streaming", {{"window-blocks", "1.5"}}),
            "policy streaming: window-blocks is \"1.5\", must be an integer from 0 to 1048576");
  for (const char* size : {"8", "8x", "x8", "0x8", "2x2x2x2", "8x8 ", "-8x8"}) {
    EXPECT_EQ(error("sliding-tile", {{"tile", size}}),
              "policy sliding-tile: tile is \"" + std::string(size) +
                  "\", must be rows x columns or frames x rows x columns, such as 8x8 or 4x8x8");
  }
  EXPECT_EQ(error("arrow-window", {{"band", "3"}}),
            "policy arrow-window: band is \"3\", must be a number from 0 to 2");
}

}  // namespace
}  // namespace flashomni
