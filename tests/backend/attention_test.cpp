// What attention.h promises, on every backend: values.
#include "flashomni/error.h"

#include "attention_case.h"

namespace flashomni {
namespace {

using test::AttentionShape;
using test::Axis;
using test::Pattern;

class Attention : public test::BackendTest {
 protected:
  void expect_shape_works(const AttentionShape& shape, Pattern pattern) {
    SCOPED_TRACE(testing::Message()
                 << "batch " << shape.batch << ", " << shape.num_heads << " heads over "
                 << shape.num_kv_heads << ", head_dim " << shape.head_dim << ", tokens "
                 << shape.q.tokens << " x " << shape.kv.tokens << ", blocks " << shape.q.block
                 << " x " << shape.kv.block << ", pattern " << static_cast<int>(pattern));
    auto c = test::random_attention(shape, dtype, pattern);
    test::run(*backend, c);
    test::expect_correct(c);
  }
};

TEST_P(Attention, MatchesTheOracleAtEveryHeadDim) {
  for (const int head_dim : {8, 24, 64, 128}) {
    expect_shape_works({1, 2, 2, head_dim, {130}, {130}}, Pattern::kRandom);
  }
}

TEST_P(Attention, RefusesAHeadDimThatItHasNoKernelFor) {
  for (const int head_dim : {1, 2, 3, 4, 5, 7, 12, 20, 33, 100}) {
    try {
      expect_shape_works({1, 2, 2, head_dim, {40, 32}, {40, 32}}, Pattern::kRandom);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
      EXPECT_NE(head_dim % 8, 0) << error.what();
    }
  }
}

// Also the lengths at which the published split-KV kernel overwrites cached rows (A1).
TEST_P(Attention, MatchesTheOracleAtEveryLength) {
  for (const int tokens : {1, 127, 128, 129, 300}) {
    expect_shape_works({1, 1, 1, 24, {tokens}, {tokens}}, Pattern::kRandom);
  }
}

TEST_P(Attention, QueriesAndKeysMayDifferInNumber) {
  expect_shape_works({1, 1, 1, 64, {37}, {300}}, Pattern::kRandom);
  expect_shape_works({1, 1, 1, 64, {300}, {37}}, Pattern::kRandom);
  expect_shape_works({1, 1, 1, 64, {65}, {1}}, Pattern::kRandom);
}

// Blocks smaller than a kernel's tile (A2, A3), larger ones, and unequal ones.
TEST_P(Attention, MatchesTheOracleAtEveryBlockSize) {
  for (const auto [block_q, block_kv] :
       {std::pair{32, 32}, {64, 64}, {128, 128}, {32, 128}, {128, 32}, {64, 128}}) {
    expect_shape_works({1, 1, 1, 24, {300, block_q}, {290, block_kv}}, Pattern::kRandom);
  }
  expect_shape_works({1, 1, 1, 8, {33, 5}, {29, 3}}, Pattern::kRandom);
  expect_shape_works({1, 1, 1, 8, {300, 1000}, {300, 1000}}, Pattern::kAllLive);
}

TEST_P(Attention, MatchesTheOracleUnderEveryPattern) {
  for (const Pattern pattern : test::kPatterns) {
    expect_shape_works({2, 3, 3, 24, {150, 32}, {150, 32}}, pattern);
  }
}

// From some number on the cpu backend packs K and V.
TEST_P(Attention, ManyQueryBlocksMayAttendToTheSameKeys) {
  for (const Pattern pattern : test::kPatterns) {
    expect_shape_works({2, 2, 1, 24, {200, 8}, {90, 32}}, pattern);
    expect_shape_works({2, 2, 2, 64, {420, 16}, {390, 64}}, pattern);
  }
}

TEST_P(Attention, EveryHeadHasSymbolsOfItsOwn) {
  for (const int heads : {1, 3, 5, 33}) {
    expect_shape_works({1, heads, heads, 8, {70, 32}, {70, 32}}, Pattern::kRandom);
  }
}

TEST_P(Attention, QueryHeadsMayShareKeysAndValues) {  // A8
  for (const auto [heads, kv_heads] : {std::pair{4, 2}, {4, 1}, {6, 3}}) {
    expect_shape_works({1, heads, kv_heads, 24, {70, 32}, {70, 32}}, Pattern::kRandom);
  }
}

TEST_P(Attention, ItemsMayHaveLengthsOfTheirOwn) {
  const Axis q{150, 32, {150, 65, 0}}, kv{140, 64, {1, 140, 77}};
  for (const Pattern pattern : {Pattern::kAllLive, Pattern::kRandom}) {
    expect_shape_works({3, 2, 2, 24, q, kv}, pattern);
  }
}

TEST_P(Attention, AnItemWithoutKeysGivesZeros) {
  const Axis q{40, 32}, kv{40, 32, {40, 0}};
  expect_shape_works({2, 1, 1, 24, {40, 32, {40, 40}}, kv}, Pattern::kAllLive);
}

TEST_P(Attention, ThereMayBeNoKeysOrNoQueriesAtAll) {
  expect_shape_works({2, 2, 2, 24, {40, 32}, {0, 32}}, Pattern::kAllLive);
  expect_shape_works({2, 2, 2, 24, {0, 32}, {40, 32}}, Pattern::kAllLive);
}

TEST_P(Attention, BlocksRestartAtTheBorderOfTextAndImage) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{150, 64, {150, 100}, 37, position};
    expect_shape_works({2, 2, 2, 24, axis, axis}, Pattern::kRandom);
  }
}

TEST_P(Attention, LargeLogitsNeitherOverflowNorCancel) {
  for (const float scale : {300.0f, -300.0f, 0.0f, 1e-6f}) {
    auto c = test::random_attention({1, 2, 2, 24, {70, 32}, {70, 32}}, dtype, Pattern::kRandom);
    c.scale = scale;
    test::run(*backend, c);
    test::expect_correct(c);
  }
}

TEST_P(Attention, ValuesMayFillTheRangeOfTheDType) {
  auto c = test::random_attention({1, 1, 1, 24, {70, 32}, {70, 32}}, dtype, Pattern::kRandom);
  const float largest = dtype == DType::kF16 ? 65504.0f : 0x1p120f;
  for (index_t i = 0; i < c.v.num_elements(); ++i) {
    store_float(c.v, i, (i % 3 == 0 ? -1.0f : 1.0f) * largest);
  }
  test::run(*backend, c);
  test::expect_correct(c);
}

// Two keys, one with logit 0: the other's weight is exp(-x), x from 0 to 2, and nothing else adds
// an error in which that of exp could hide.
TEST_P(Attention, WeightsAreAsExactAsTheirDType) {
  auto c = test::random_attention({1, 1, 1, 8, {256}, {2}}, dtype, Pattern::kAllLive);
  for (const Tensor* x : {&c.q, &c.k, &c.v}) {
    for (index_t i = 0; i < x->num_elements(); ++i) store_float(*x, i, 0);
  }
  for (index_t t = 0; t < 256; ++t) store_float(c.q, t * 8, -static_cast<float>(t) / 128);
  store_float(c.k, 0, 1);
  store_float(c.v, 0, 1);
  c.scale = 1;
  test::run(*backend, c);
  test::expect_correct(c);
}

// One key: out is its value, and lse its logit, not the logit over log 2.
TEST_P(Attention, LseIsTheNaturalLogarithm) {
  auto c = test::random_attention({1, 1, 1, 8, {3}, {1}}, dtype, Pattern::kAllLive);
  for (index_t i = 0; i < c.q.num_elements(); ++i) store_float(c.q, i, 1.5f);
  for (index_t i = 0; i < c.k.num_elements(); ++i) store_float(c.k, i, 0.25f);
  c.scale = 0.5f;
  test::run(*backend, c);
  for (index_t i = 0; i < 3; ++i) EXPECT_FLOAT_EQ(c.lse.as<float>()[i], 8 * 1.5f * 0.25f * 0.5f);
  for (index_t i = 0; i < 24; ++i) EXPECT_EQ(load_float(c.out, i), load_float(c.v, i % 8));
}

TEST_P(Attention, LseIsOptional) {
  auto c = test::random_attention({1, 2, 2, 24, {70, 32}, {70, 32}}, dtype, Pattern::kEmptyRows);
  AttentionPlan plan;
  backend->build_attention_plan(c.sparsity.symbols(), plan, {});
  const Tensor q = test::upload(*backend, c.q), k = test::upload(*backend, c.k);
  const Tensor v = test::upload(*backend, c.v), out = test::upload(*backend, c.out);
  attention(*backend, plan, q, k, v, c.scale, out);
  test::download(*backend, out, c.out);
  const auto expected = test::attention_oracle(c.sparsity, c.q, c.k, c.v, c.scale);
  test::expect_matches(c.out, expected.out, "out");
}

FO_TEST_EVERY_BACKEND(Attention);

}  // namespace
}  // namespace flashomni
