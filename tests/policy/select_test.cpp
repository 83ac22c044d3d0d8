// The selection on random scores: against a second implementation that ranks by counting instead of
// sorting, and properties that hold for any scores.
#include <cmath>
#include <random>

#include "gmock/gmock.h"

#include "flashomni/policy.h"

#include "errors.h"

namespace flashomni {
namespace {

struct Problem {
  BlockGrid q_grid, kv_grid;
  BlockScores scores;
  SparseSymbols symbols() const { return {q_grid, kv_grid, scores.num_heads}; }
};

Problem random_problem(BlockGrid q_grid, BlockGrid kv_grid, int num_heads, unsigned seed) {
  Problem problem{q_grid, kv_grid, {}};
  BlockScores& s = problem.scores;
  s.batch = q_grid.batch();
  s.num_heads = num_heads;
  s.num_q_blocks = q_grid.num_blocks();
  s.num_kv_blocks = kv_grid.num_blocks();
  std::mt19937 random(seed);
  std::normal_distribution<float> logit(0, 2);
  std::uniform_real_distribution<float> cosine(0, 1);
  const std::size_t rows = static_cast<std::size_t>(s.batch) * num_heads;
  s.logits.resize(rows * s.num_q_blocks * s.num_kv_blocks);
  s.q_similarity.resize(rows * s.num_q_blocks);
  s.k_similarity.resize(rows * s.num_kv_blocks);
  for (float& value : s.logits) value = logit(random);
  for (float& value : s.q_similarity) value = cosine(random);
  for (float& value : s.k_similarity) value = cosine(random);
  return problem;
}

// Two items of one grid; the second is shorter, so that its last blocks hold nothing.
Problem random_problem(TextPosition text, int num_heads, unsigned seed) {
  const auto segments = make_segments(150, 37, text);
  const int lengths[] = {150, 101};
  const BlockGrid grid(16, 2, segments, lengths);
  return random_problem(grid, grid, num_heads, seed);
}

// The same rules without a sort: a value is selected if the sum of all values that rank at or
// before it stays within tau of the total, unless it ranks last.
std::vector<bool> low_by_counting(const std::vector<double>& values, double tau) {
  std::vector<bool> low(values.size());
  double total = 0;
  for (double value : values) total += value;
  for (std::size_t m = 0; m < values.size(); ++m) {
    double sum = 0;
    bool last = true;
    for (std::size_t n = 0; n < values.size(); ++n) {
      const bool before = values[n] < values[m] || (values[n] == values[m] && n <= m);
      if (before) sum += values[n];
      if (!before) last = false;
    }
    low[m] = tau > 0 && !last && sum <= tau * total;
  }
  return low;
}

class SecondOpinion {
 public:
  SecondOpinion(const Problem& problem, const FlashOmniOptions& options)
      : p_(problem), o_(options) {}

  SparseSymbols select() const {
    SparseSymbols symbols = p_.symbols();
    for (int item = 0; item < p_.scores.batch; ++item) {
      for (int head = 0; head < p_.scores.num_heads; ++head) select(item, head, symbols);
    }
    return symbols;
  }

 private:
  bool is_valid(const BlockGrid& grid, int item, int index) const {
    return grid.at(item, index).count > 0;
  }
  bool is_similar(const std::vector<float>& similarity, int item, int head, int blocks,
                  int index) const {
    const int row = item * p_.scores.num_heads + head;
    return !o_.sim_threshold || similarity[row * blocks + index] > *o_.sim_threshold;
  }
  double exp_logit(int item, int head, int i, int j) const {
    return std::exp(static_cast<double>(p_.scores.logits_row(item, head, i)[j]));
  }
  // Softmax over the valid kv blocks, one number at a time.
  double probability(int item, int head, int i, int j, bool gated) const {
    double total = 0;
    for (int n = 0; n < p_.scores.num_kv_blocks; ++n) {
      const bool counts =
          !gated || is_similar(p_.scores.k_similarity, item, head, p_.scores.num_kv_blocks, n);
      if (is_valid(p_.kv_grid, item, n) && counts) total += exp_logit(item, head, i, n);
    }
    return exp_logit(item, head, i, j) / total;
  }
  double c(int item, int head, int i) const {
    double sum = 0;
    for (int j = 0; j < p_.scores.num_q_blocks; ++j) {
      if (p_.q_grid.is_text(item, j) && is_valid(p_.q_grid, item, j)) {
        sum += probability(item, head, j, i, false);
      }
    }
    return sum;
  }
  double g(int item, int head, int i, const std::vector<int>& image) const {
    double sum = 0;
    for (int j = 0; j < p_.scores.num_kv_blocks; ++j) {
      if (!p_.kv_grid.is_text(item, j) || !is_valid(p_.kv_grid, item, j)) continue;
      double total = 0;
      for (int row : image) total += std::exp(probability(item, head, row, j, false));
      sum += std::exp(probability(item, head, i, j, false)) / total;
    }
    return sum;
  }

  void select(int item, int head, SparseSymbols& symbols) const {
    std::vector<int> image;
    for (int i = 0; i < p_.scores.num_q_blocks; ++i) {
      if (is_valid(p_.q_grid, item, i) && !p_.q_grid.is_text(item, i)) image.push_back(i);
    }
    std::vector<double> c_row(image.size()), g_row(image.size());
    for (std::size_t n = 0; n < image.size(); ++n) {
      for (int h = 0; h < p_.scores.num_heads; ++h) {
        if (o_.scope == PolicyScope::kHead && h != head) continue;
        c_row[n] += c(item, h, image[n]);
        g_row[n] += g(item, h, image[n], image);
      }
    }
    const auto low_c = low_by_counting(c_row, o_.tau_q), low_g = low_by_counting(g_row, o_.tau_q);
    for (std::size_t n = 0; n < image.size(); ++n) {
      const int i = image[n];
      if (!is_similar(p_.scores.q_similarity, item, head, p_.scores.num_q_blocks, i)) continue;
      if (p_.q_grid.has_text(item) && low_c[n] && low_g[n]) {
        symbols.cache(item, head, i);
      } else {
        skip(item, head, i, symbols);
      }
    }
  }

  void skip(int item, int head, int i, SparseSymbols& symbols) const {
    std::vector<int> blocks;
    std::vector<double> row;
    for (int j = 0; j < p_.scores.num_kv_blocks; ++j) {
      if (!is_valid(p_.kv_grid, item, j)) continue;
      if (!is_similar(p_.scores.k_similarity, item, head, p_.scores.num_kv_blocks, j)) continue;
      blocks.push_back(j);
      row.push_back(probability(item, head, i, j, true));
    }
    const auto low = low_by_counting(row, o_.tau_kv);
    for (std::size_t n = 0; n < blocks.size(); ++n) {
      const bool text = p_.kv_grid.is_text(item, blocks[n]);
      if (low[n] && !(text && o_.keep_text_kv)) symbols.skip(item, head, i, blocks[n]);
    }
  }

  const Problem& p_;
  const FlashOmniOptions& o_;
};

TEST(SelectFlashOmni, AgreesWithASecondImplementation) {
  const double taus[] = {0, .1, .3, .5, .8, 1};
  for (unsigned seed = 0; seed < 24; ++seed) {
    SCOPED_TRACE(seed);
    const Problem problem =
        random_problem(seed % 2 ? TextPosition::kLast : TextPosition::kFirst, 3, seed);
    FlashOmniOptions options{.tau_q = taus[seed % 6], .tau_kv = taus[(seed / 2) % 6]};
    options.scope = seed % 3 == 0 ? PolicyScope::kLayer : PolicyScope::kHead;
    options.keep_text_kv = seed % 5 != 0;
    if (seed % 4 == 1) options.sim_threshold = .25;
    SparseSymbols symbols = problem.symbols();
    select_flashomni(options, 1, problem.scores, symbols);
    EXPECT_EQ(symbols, SecondOpinion(problem, options).select());
  }
}

TEST(SelectFlashOmni, SelectsNothingAtZeroEvenWhereMassUnderflows) {
  Problem problem = random_problem(TextPosition::kFirst, 2, 1);
  for (std::size_t i = 0; i < problem.scores.logits.size(); i += 2) problem.scores.logits[i] = -1e4;
  SparseSymbols symbols = problem.symbols();
  for (double tau : {0.0, -1.0}) {
    select_flashomni({.tau_q = tau, .tau_kv = tau}, 1, problem.scores, symbols);
    EXPECT_EQ(symbols, problem.symbols());
  }
  select_flashomni({.tau_q = .9, .tau_kv = .9}, 0, problem.scores, symbols);
  EXPECT_EQ(symbols, problem.symbols()) << "a ramp of 0 makes both thresholds 0";
}

TEST(SelectFlashOmni, RampsBothThresholds) {
  const Problem problem = random_problem(TextPosition::kFirst, 2, 2);
  SparseSymbols ramped = problem.symbols(), plain = problem.symbols();
  select_flashomni({.tau_q = .8, .tau_kv = .4}, .5, problem.scores, ramped);
  select_flashomni({.tau_q = .4, .tau_kv = .2}, 1, problem.scores, plain);
  EXPECT_EQ(ramped, plain);
}

TEST(SelectFlashOmni, KeepsOneImageBlockAndOneKeyBlockAtTauOne) {
  const Problem problem = random_problem(TextPosition::kFirst, 4, 3);
  SparseSymbols symbols = problem.symbols();
  select_flashomni({.tau_q = 1, .tau_kv = 1, .keep_text_kv = false}, 1, problem.scores, symbols);
  for (int item = 0; item < 2; ++item) {
    for (int head = 0; head < 4; ++head) {
      int live = 0;
      for (int i = 0; i < problem.q_grid.num_blocks(); ++i) {
        if (problem.q_grid.is_text(item, i) || !symbols.is_live(item, head, i)) continue;
        ++live;
        int used = 0;
        for (int j = 0; j < problem.kv_grid.num_blocks(); ++j) {
          used += symbols.is_used(item, head, i, j);
        }
        EXPECT_EQ(used, 1);
      }
      EXPECT_GE(live, 1);
    }
  }
}

TEST(SelectFlashOmni, NeverTakesBackAsThresholdsRise) {
  const Problem problem = random_problem(TextPosition::kFirst, 3, 4);
  SparseSymbols before = problem.symbols();
  std::int64_t live_before = before.stats().live_block_pairs;
  for (double tau : {.1, .2, .4, .6, .8, .95}) {
    SparseSymbols after = problem.symbols();
    select_flashomni({.tau_q = tau, .tau_kv = tau}, 1, problem.scores, after);
    for (std::size_t w = 0; w < after.cache_words().size(); ++w) {
      EXPECT_EQ(after.cache_words()[w] & ~before.cache_words()[w], 0u);
    }
    for (std::size_t w = 0; w < after.skip_words().size(); ++w) {
      EXPECT_EQ(after.skip_words()[w] & ~before.skip_words()[w], 0u);
    }
    EXPECT_LT(after.stats().live_block_pairs, live_before);
    live_before = after.stats().live_block_pairs;
    before = std::move(after);
  }
}

TEST(SelectFlashOmni, LeavesTextRowsAndTextColumnsAlone) {
  const Problem problem = random_problem(TextPosition::kLast, 3, 5);
  SparseSymbols symbols = problem.symbols();
  const SparseSymbols all_live = problem.symbols();
  const SelectionScores scores =
      select_flashomni({.tau_q = .6, .tau_kv = .6}, 1, problem.scores, symbols);
  for (int item = 0; item < 2; ++item) {
    for (int head = 0; head < 3; ++head) {
      for (int i = 0; i < problem.q_grid.num_blocks(); ++i) {
        const bool text_row = problem.q_grid.is_text(item, i);
        const std::size_t at = (item * 3 + head) * problem.q_grid.num_blocks() + i;
        if (text_row) EXPECT_EQ(scores.c[at] + scores.g[at], 0);
        for (int j = 0; j < problem.kv_grid.num_blocks(); ++j) {
          const bool keep =
              text_row || (problem.kv_grid.is_text(item, j) && symbols.is_live(item, head, i));
          if (keep) {
            EXPECT_EQ(symbols.is_used(item, head, i, j), all_live.is_used(item, head, i, j));
          }
        }
      }
    }
  }
}

TEST(SelectFlashOmni, TreatsItemsOfABatchAlone) {
  const Problem both = random_problem(TextPosition::kFirst, 2, 6);
  SparseSymbols symbols = both.symbols();
  select_flashomni({.tau_q = .6, .tau_kv = .3}, 1, both.scores, symbols);
  const int lengths[] = {101};
  const BlockGrid grid(16, 1, make_segments(150, 37, TextPosition::kFirst), lengths);
  Problem second = random_problem(grid, grid, 2, 0);
  const std::size_t half = both.scores.logits.size() / 2;
  second.scores.logits.assign(both.scores.logits.begin() + half, both.scores.logits.end());
  SparseSymbols alone = second.symbols();
  select_flashomni({.tau_q = .6, .tau_kv = .3}, 1, second.scores, alone);
  for (int head = 0; head < 2; ++head) {
    for (int i = 0; i < grid.num_blocks(); ++i) {
      EXPECT_TRUE(std::ranges::equal(alone.skip_row(0, head, i), symbols.skip_row(1, head, i)));
    }
  }
}

TEST(SelectFlashOmni, OnlySkipsWithoutText) {
  const BlockGrid grid(16, 1, make_segments(100, 0, TextPosition::kNone));
  const Problem problem = random_problem(grid, grid, 2, 7);
  SparseSymbols symbols = problem.symbols();
  const SelectionScores scores =
      select_flashomni({.tau_q = .9, .tau_kv = .3}, 1, problem.scores, symbols);
  EXPECT_EQ(symbols.stats().live_q_blocks, symbols.stats().q_blocks);
  EXPECT_LT(symbols.stats().live_block_pairs, symbols.stats().block_pairs);
  EXPECT_THAT(scores.c, testing::Each(0));
  EXPECT_THAT(scores.g, testing::Each(0));
}

// Image kv blocks of 32 over image q blocks of 16: each q block takes half of its kv block's mass.
TEST(SelectFlashOmni, SharesAKeyBlocksMassOverSmallerQueryBlocks) {
  const auto segments = make_segments(16 + 64, 16, TextPosition::kFirst);
  const BlockGrid q_grid(16, 1, segments), kv_grid(32, 1, segments);
  ASSERT_EQ(q_grid.num_blocks(), 5);
  ASSERT_EQ(kv_grid.num_blocks(), 3);
  Problem problem = random_problem(q_grid, kv_grid, 1, 8);
  SparseSymbols symbols = problem.symbols();
  const SelectionScores scores = select_flashomni({}, 1, problem.scores, symbols);
  const auto text_row = problem.scores.logits_row(0, 0, 0);
  const double e[] = {std::exp(text_row[0]), std::exp(text_row[1]), std::exp(text_row[2])};
  const double total = e[0] + e[1] + e[2];
  EXPECT_NEAR(scores.c[1], e[1] / total / 2, 1e-6);
  EXPECT_NEAR(scores.c[2], e[1] / total / 2, 1e-6);
  EXPECT_NEAR(scores.c[3], e[2] / total / 2, 1e-6);
  EXPECT_NEAR(scores.c[4], e[2] / total / 2, 1e-6);
}

TEST(SelectFlashOmni, LeavesEverythingLiveWhereScoresAreNotFinite) {
  Problem problem = random_problem(TextPosition::kFirst, 2, 9);
  std::ranges::fill(problem.scores.logits, NAN);
  SparseSymbols symbols = problem.symbols();
  select_flashomni({.tau_q = .9, .tau_kv = .9}, 1, problem.scores, symbols);
  EXPECT_EQ(symbols, problem.symbols());
}

TEST(SelectFlashOmni, NamesBothShapesWhenTheyDisagree) {
  const Problem problem = random_problem(TextPosition::kFirst, 2, 10);
  SparseSymbols symbols(problem.q_grid, problem.kv_grid, 3);
  EXPECT_EQ(test::error_of([&] { select_flashomni({}, 1, problem.scores, symbols); }),
            "select_flashomni: scores are [2, 2, 11, 11], symbols are [2, 3, 11, 11]");
}

}  // namespace
}  // namespace flashomni
