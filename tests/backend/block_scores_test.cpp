// What backend.h promises of block_scores, on every backend.
#include <cmath>

#include "backends.h"
#include "case.h"
#include "reference.h"

namespace flashomni {
namespace {

using test::Axis;
using test::Expected;
using test::ExpectedTensor;
using test::values_of;

struct Inputs {
  int batch = 2, heads = 3, kv_heads = 3, head_dim = 24;
  Axis q{70, 16, {70, 37}}, kv{90, 32, {90, 50}};
};

// Tokens of one block of one head, [count][head_dim], in fp64.
using Rows = std::vector<std::vector<double>>;

Rows rows_of(const std::vector<double>& x, const Inputs& in, const Axis& axis, int heads, int item,
             int head, int block) {
  Rows rows;
  for (int t = 0; t < axis.length(item); ++t) {
    if (block >= 0 && test::block_of(axis, t) != block) continue;
    const auto* row =
        &x[static_cast<std::size_t>((item * axis.tokens + t) * heads + head) * in.head_dim];
    rows.emplace_back(row, row + in.head_dim);
  }
  return rows;
}

std::vector<double> mean_of(const Rows& rows, int dim) {
  std::vector<double> mean(dim);
  for (const auto& row : rows) {
    for (int d = 0; d < dim; ++d) mean[d] += row[d] / static_cast<double>(rows.size());
  }
  return mean;
}

// Pair by pair, as the definition reads.
double similarity_of(const Rows& rows) {
  double sum = 0;
  for (const auto& a : rows) {
    for (const auto& b : rows) {
      double dot = 0, a2 = 0, b2 = 0;
      for (std::size_t d = 0; d < a.size(); ++d) {
        dot += a[d] * b[d];
        a2 += a[d] * a[d];
        b2 += b[d] * b[d];
      }
      sum += a2 > 0 && b2 > 0 ? dot / std::sqrt(a2 * b2) : 0;
    }
  }
  return rows.empty() ? 0 : sum / static_cast<double>(rows.size() * rows.size());
}

struct ExpectedScores {
  std::vector<Expected> logits, q_similarity, k_similarity;
};

ExpectedScores scores_oracle(const Inputs& in, ConstTensorView q, ConstTensorView k,
                             const BlockScoreOptions& options) {
  const auto qs = values_of(q), ks = values_of(k);
  const int q_blocks = test::num_blocks(in.q), kv_blocks = test::num_blocks(in.kv);
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(in.head_dim);
  ExpectedScores expected;
  for (int n = 0; n < in.batch * in.heads; ++n) {
    const int item = n / in.heads, head = n % in.heads, kv_head = head / (in.heads / in.kv_heads);
    const Rows all_keys = rows_of(ks, in, in.kv, in.kv_heads, item, kv_head, -1);
    const auto key_mean = mean_of(all_keys, in.head_dim);
    std::vector<Rows> keys;
    for (int j = 0; j < kv_blocks; ++j) {
      keys.push_back(rows_of(ks, in, in.kv, in.kv_heads, item, kv_head, j));
      for (auto& row : keys.back()) {
        for (int d = 0; d < in.head_dim; ++d) row[d] -= options.subtract_k_mean * key_mean[d];
      }
      expected.k_similarity.push_back(
          {similarity_of(keys.back()), test::similarity_error(in.kv.block, in.head_dim)});
    }
    for (int i = 0; i < q_blocks; ++i) {
      const Rows queries = rows_of(qs, in, in.q, in.heads, item, head, i);
      expected.q_similarity.push_back(
          {similarity_of(queries), test::similarity_error(in.q.block, in.head_dim)});
      const auto query = mean_of(queries, in.head_dim);
      for (int j = 0; j < kv_blocks; ++j) {
        if (queries.empty() || keys[j].empty()) {
          expected.logits.push_back({0, 0});
          continue;
        }
        const auto key = mean_of(keys[j], in.head_dim);
        double logit = 0, magnitude = 0;
        for (int d = 0; d < in.head_dim; ++d) {
          logit += scale * query[d] * key[d];
          // Means of numbers of about 1; the sums behind them carry the error.
          magnitude += scale * (std::abs(query[d]) + 1) * (std::abs(key[d]) + 1);
        }
        if (options.log_count_bias) {
          logit += std::log(static_cast<double>(keys[j].size()) / in.kv.block);
        }
        const int longest = std::max(in.q.block, in.kv.tokens) + in.head_dim;
        expected.logits.push_back({logit, test::sum_error(longest, magnitude)});
      }
    }
  }
  return expected;
}

void expect_near(const std::vector<float>& actual, const std::vector<Expected>& expected,
                 const char* name) {
  const ExpectedTensor wanted(expected.begin(), expected.end());
  test::expect_matches({actual.data(), DType::kF32, {static_cast<index_t>(actual.size())}}, wanted,
                       name);
}

class BlockScoresOf : public test::BackendTest {
 protected:
  void expect_works(const Inputs& in, const BlockScoreOptions& options) {
    const index_t dim = in.head_dim;
    const Tensor q = test::random_tensor(dtype, {in.batch, in.q.tokens, in.heads, dim}, 1);
    const Tensor k = test::random_tensor(dtype, {in.batch, in.kv.tokens, in.kv_heads, dim}, 2);
    const ExpectedScores expected = scores_oracle(in, q, k, options);
    // Whatever lies past an item's length must not be pooled.
    for (int item = 0; item < in.batch; ++item) {
      test::poison(q.view().slice(0, item, item + 1).slice(1, in.q.length(item), in.q.tokens));
      test::poison(k.view().slice(0, item, item + 1).slice(1, in.kv.length(item), in.kv.tokens));
    }
    const Tensor device_q = test::upload(*backend, q), device_k = test::upload(*backend, k);
    BlockScores scores;
    backend->block_scores(device_q, device_k, in.q.grid(in.batch), in.kv.grid(in.batch), options,
                          scores, {});
    EXPECT_EQ(scores.batch, in.batch);
    EXPECT_EQ(scores.num_heads, in.heads);
    EXPECT_EQ(scores.num_q_blocks, test::num_blocks(in.q));
    EXPECT_EQ(scores.num_kv_blocks, test::num_blocks(in.kv));
    expect_near(scores.logits, expected.logits, "logits");
    if (options.similarity) {
      expect_near(scores.q_similarity, expected.q_similarity, "q_similarity");
      expect_near(scores.k_similarity, expected.k_similarity, "k_similarity");
    } else {
      EXPECT_TRUE(scores.q_similarity.empty());
      EXPECT_TRUE(scores.k_similarity.empty());
    }
  }
};

TEST_P(BlockScoresOf, MatchTheOracleUnderEveryOption) {
  for (int given = 0; given < 16; ++given) {
    SCOPED_TRACE(given);
    BlockScoreOptions options;
    options.scale = given & 1 ? 0.3f : 0;
    options.similarity = (given & 2) != 0;
    options.subtract_k_mean = (given & 4) != 0;
    options.log_count_bias = (given & 8) != 0;
    expect_works({}, options);
  }
}

TEST_P(BlockScoresOf, MatchTheOracleAtEveryShape) {
  const BlockScoreOptions options{0, true, true, true};
  for (const int head_dim : {8, 24, 64, 128}) {
    expect_works({1, 2, 2, head_dim, {150, 64}, {150, 64}}, options);
  }
  for (const auto [heads, kv_heads] : {std::pair{4, 2}, {4, 1}, {33, 33}}) {
    expect_works({1, heads, kv_heads, 8, {40, 16}, {40, 16}}, options);
  }
  expect_works({1, 1, 1, 8, {1, 16}, {1, 16}}, options);
  expect_works({2, 1, 1, 8, {40, 16, {40, 0}}, {40, 16, {0, 40}}}, options);
  const Axis joint{150, 64, {150, 100}, 37, TextPosition::kFirst};
  expect_works({2, 2, 2, 8, joint, joint}, options);
}

TEST_P(BlockScoresOf, ZeroTokensHaveNoSimilarity) {
  const Tensor zeros = Tensor::host_zeros(dtype, {1, 8, 1, 8});
  const Tensor device = test::upload(*backend, zeros);
  BlockScores scores;
  const BlockGrid grid = Axis{8, 4}.grid(1);
  backend->block_scores(device, device, grid, grid, {0, true, false, false}, scores, {});
  for (const float x : scores.q_similarity) EXPECT_EQ(x, 0);
  for (const float x : scores.k_similarity) EXPECT_EQ(x, 0);
}

TEST_P(BlockScoresOf, ReadStridedViewsAndReuseTheResult) {
  Tensor fused = test::random_tensor(dtype, {1, 40, 6, 8}, 1);
  const Tensor device = test::upload(*backend, fused);
  const Inputs in{1, 2, 2, 8, {40, 16}, {40, 16}};
  const auto part = [&](int first) {
    Tensor x = Tensor::host(dtype, {1, 40, 2, 8});
    for (index_t i = 0; i < x.num_elements(); ++i) {
      store_float(x, i, load_float(fused, i / 16 * 48 + first * 8 + i % 16));
    }
    return x;
  };
  const ExpectedScores expected = scores_oracle(in, part(0), part(2), {});
  BlockScores scores;
  for (int repeat = 0; repeat < 2; ++repeat) {
    backend->block_scores(device.view().slice(2, 0, 2), device.view().slice(2, 2, 4), in.q.grid(1),
                          in.kv.grid(1), {}, scores, {});
    expect_near(scores.logits, expected.logits, "logits");
  }
}

FO_TEST_EVERY_BACKEND(BlockScoresOf);

}  // namespace
}  // namespace flashomni
