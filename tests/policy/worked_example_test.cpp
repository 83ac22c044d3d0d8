// The worked example of the specification: two heads, 26 tokens, seven blocks of which the last is
// short; masks, published bytes, words and normalised scores, from the block scores of every
// backend.
#include <numeric>

#include "gmock/gmock.h"

#include "flashomni/backend.h"
#include "flashomni/policy.h"

namespace flashomni {
namespace {

using testing::ElementsAreArray;

constexpr int kHeads = 2, kTokens = 26, kHeadDim = 4, kBlock = 4, kBlocks = 7;

struct Case {
  const char* name;
  TextPosition text;
  FlashOmniOptions options;
  std::vector<std::string> cache, skip;  // a string of 0 and 1 per head; per head and q block
  std::vector<std::uint8_t> cache_bytes, skip_bytes;  // the published format
};

const std::string kAll = "1111111", kNone = "0000000";

std::vector<Case> cases() {
  return {
      {"A",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .10},
       {"1111100", "1110111"},
       {kAll, kAll, kAll, kAll, kAll, kNone, kNone,  //
        kAll, kAll, kAll, kNone, "1111011", "1110111", "1101101"},
       {0x7F, 0x2B},
       {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0xFF, 0x37, 0xE0, 0x0E, 0xD8, 0x02}},
      {"B",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .10, .scope = PolicyScope::kLayer},
       {"1110111", "1110111"},
       {kAll, kAll, kAll, kNone, kAll, "1110111", "1111101",  //
        kAll, kAll, kAll, kNone, "1111011", "1110111", "1101101"},
       {0x3F, 0x3F},
       {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x03, 0x00, 0xFF, 0xF7, 0xFD, 0xFE, 0xDD, 0x02}},
      {"C",
       TextPosition::kLast,
       {.tau_q = .5, .tau_kv = .10},
       {"1010111", "1101011"},
       {"1101111", kNone, "0111111", kNone, "0111111", kAll, kAll,  //
        "1111011", "1111011", kNone, "1011111", kNone, kAll, kAll},
       {0x9B, 0x3D},
       {0xFB, 0x37, 0xE0, 0xED, 0x07, 0x00, 0xFA, 0x7E, 0xC0, 0xFF, 0xFF, 0xFF, 0x03}},
      {"D",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .25, .sim_threshold = .978},
       {"1111110", "1110111"},
       {kAll, kAll, "1111011", "1111101", "1111011", kAll, kNone,  //
        kAll, kAll, "1111010", kNone, "1110011", "1110010", "1101101"},
       {0x7F, 0x2F},
       {0xFF, 0xFF, 0xFF, 0xFF, 0x7E, 0x7D, 0x01, 0xEF, 0xF3, 0xFF, 0x04, 0xD8, 0x02}},
      {"E",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .25},
       {"1111100", "1110111"},
       {kAll, kAll, "1110011", "1111101", "1111011", kNone, kNone,  //
        kAll, kAll, "1111010", kNone, "1110011", "1110010", "1101101"},
       {0x7F, 0x2B},
       {0xFF, 0xFF, 0xFF, 0x7F, 0x7E, 0x7D, 0x01, 0xEF, 0x33, 0xE0, 0x04, 0xD8, 0x02}},
  };
}

// Every value is exact in bf16. `b` is t / 4 whatever the blocks are.
Tensor example_tensor(int (*pattern)(int h, int d, int b), int modulus, int token_factor) {
  Tensor tensor = Tensor::host(DType::kF32, {1, kTokens, kHeads, kHeadDim});
  float* out = tensor.as<float>();
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      for (int d = 0; d < kHeadDim; ++d) {
        *out++ = (pattern(h, d, t / 4) % modulus - modulus / 2) / 4.0f +
                 ((t + token_factor * d) % 3 - 1) / 8.0f;
      }
    }
  }
  return tensor;
}

Tensor queries() {
  return example_tensor(
      [](int h, int d, int b) { return 3 * b * b + 5 * h + 7 * d * b + 2 * d + 4 * h * d * b; }, 13,
      1);
}

Tensor keys() {
  return example_tensor(
      [](int h, int d, int b) { return 5 * b * b + 2 * h + 3 * d * b + 4 * d + 6 * h * b; }, 11, 2);
}

BlockGrid example_grid(TextPosition text) {
  const int text_tokens = text == TextPosition::kFirst ? 8 : 6;  // two blocks
  return BlockGrid(kBlock, 1, make_segments(kTokens, text_tokens, text));
}

std::vector<std::string> host_backends() {
  std::vector<std::string> names;
  for (const BackendInfo& info : list_backends()) {
    if (info.available && info.name != "cuda") names.emplace_back(info.name);
  }
  return names;
}

class WorkedExample : public testing::TestWithParam<std::string> {
 protected:
  BlockScores scores(const BlockGrid& grid) const {
    const auto backend = make_backend(GetParam(), {.num_threads = 1});
    BlockScores scores;
    backend->block_scores(queries(), keys(), grid, grid, {.similarity = true}, scores, {});
    return scores;
  }

  SparseSymbols select(const Case& example) const {
    const BlockGrid grid = example_grid(example.text);
    SparseSymbols symbols(grid, grid, kHeads);
    select_flashomni(example.options, 1, scores(grid), symbols);
    return symbols;
  }
};

TEST(WorkedExampleInput, HasTheValuesThatTheSpecificationQuotes) {
  const Tensor q = queries(), k = keys();
  EXPECT_THAT(std::span(q.as<float>(), kHeadDim), ElementsAreArray({-1.625, -1., -.375, -.125}));
  EXPECT_THAT(std::span(k.as<float>() + (25 * kHeads + 1) * kHeadDim, kHeadDim),
              ElementsAreArray({1., .875, 1.125, 1.}));
}

TEST_P(WorkedExample, GivesTheMasksAndThePublishedBytes) {
  for (const Case& example : cases()) {
    SCOPED_TRACE(example.name);
    const SparseSymbols symbols = select(example);
    std::vector<std::string> cache(kHeads), skip(kHeads * kBlocks);
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kBlocks; ++i) {
        cache[h] += symbols.is_live(0, h, i) ? '1' : '0';
        for (int j = 0; j < kBlocks; ++j) {
          skip[h * kBlocks + i] += symbols.is_used(0, h, i, j) ? '1' : '0';
        }
      }
    }
    EXPECT_EQ(cache, example.cache);
    EXPECT_EQ(skip, example.skip);
    const OfficialSymbols bytes = export_official(symbols);
    EXPECT_EQ(bytes.cache, example.cache_bytes);
    EXPECT_EQ(bytes.skip, example.skip_bytes);
  }
}

TEST_P(WorkedExample, GivesTheWordsAndTheActivePairs) {
  const int live_pairs[] = {73, 78, 64, 72, 64};
  for (int i = 0; i < 5; ++i) {
    const SymbolStats stats = select(cases()[i]).stats();
    EXPECT_EQ(stats.live_block_pairs, live_pairs[i]) << cases()[i].name;
    EXPECT_EQ(stats.block_pairs, 98);
  }
  const SparseSymbols a = select(cases()[0]);
  EXPECT_THAT(a.cache_words(), ElementsAreArray({3u, 3u, 3u, 1u, 3u, 2u, 2u}));
  EXPECT_THAT(a.skip_words(), ElementsAreArray({0x7Fu, 0x7Fu, 0x7Fu, 0x7Fu, 0x7Fu, 0u, 0u,  //
                                                0x7Fu, 0x7Fu, 0x7Fu, 0u, 0x6Fu, 0x77u, 0x5Bu}));
}

constexpr double kRounding = .5e-4 + 1e-6;  // the specification quotes four places

std::vector<double> softmax(std::span<const float> logits) {
  std::vector<double> row(logits.begin(), logits.end());
  double sum = 0;
  for (double& value : row) sum += value = std::exp(value);
  for (double& value : row) value /= sum;
  return row;
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], kRounding);
}

TEST_P(WorkedExample, GivesTheLogitsAndTheProbabilities) {
  const BlockScores measured = scores(example_grid(TextPosition::kFirst));
  const auto row = measured.logits_row(0, 0, 0);
  expect_near({row.begin(), row.end()}, {0.9307, 0.3364, -1.2788, 1.0166, 0.1841, 0.4360, 0.4131});
  expect_near(softmax(measured.logits_row(0, 1, 0)),
              {0.1372, 0.0695, 0.2977, 0.0606, 0.0430, 0.1241, 0.2680});
}

TEST_P(WorkedExample, GivesTheScoresOfImageBlocks) {
  const BlockGrid grid = example_grid(TextPosition::kFirst);
  SparseSymbols symbols(grid, grid, kHeads);
  const BlockScores measured = scores(grid);
  const SelectionScores raw = select_flashomni(cases()[0].options, 1, measured, symbols);
  const auto shares = [](const std::vector<float>& values, int head) {
    std::vector<double> row(values.begin() + head * kBlocks, values.begin() + (head + 1) * kBlocks);
    const double total = std::accumulate(row.begin(), row.end(), 0.0);
    for (double& value : row) value /= total;
    return row;
  };
  expect_near(shares(raw.c, 0), {0, 0, .1389, .2748, .2306, .1613, .1944});
  expect_near(shares(raw.g, 0), {0, 0, .1991, .2121, .2018, .1962, .1909});
  expect_near(shares(raw.c, 1), {0, 0, .2706, .1145, .0826, .1419, .3905});
  expect_near(shares(raw.g, 1), {0, 0, .1789, .1854, .2092, .2156, .2110});

  // Not normalised: C is what the two text rows leave to image columns, G one for a text column.
  const auto p0 = softmax(measured.logits_row(0, 0, 0)), p1 = softmax(measured.logits_row(0, 0, 1));
  EXPECT_NEAR(std::accumulate(raw.c.begin(), raw.c.begin() + kBlocks, 0.0),
              2 - p0[0] - p0[1] - p1[0] - p1[1], 1e-6);
  EXPECT_NEAR(std::accumulate(raw.g.begin(), raw.g.begin() + kBlocks, 0.0), 2, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, WorkedExample, testing::ValuesIn(host_backends()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashomni
