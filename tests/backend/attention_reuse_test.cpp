// What attention.h promises of cached rows with a forecast, on every backend.
#include "reuse_case.h"

namespace flashomni {
namespace {

using test::AttentionShape;
using test::Axis;
using test::Pattern;

class AttentionReuseRows : public test::BackendTest {
 protected:
  void expect_works(const AttentionShape& shape, Pattern pattern, int num_terms, DType term) {
    SCOPED_TRACE(testing::Message() << num_terms << " terms of " << dtype_name(term) << ", pattern "
                                    << static_cast<int>(pattern));
    auto c = test::random_reuse(shape, dtype, pattern, num_terms, term);
    test::run(*backend, c);
    test::expect_correct(c);
  }
};

TEST_P(AttentionReuseRows, HoldTheForecast) {
  for (int num_terms = 1; num_terms <= 3; ++num_terms) {
    for (const DType term : {DType::kF32, dtype}) {
      expect_works({1, 3, 3, 24, {70, 32}, {70, 32}}, Pattern::kRandom, num_terms, term);
    }
  }
}

TEST_P(AttentionReuseRows, UnderEveryPatternAndRaggedLengths) {
  const Axis axis{150, 32, {150, 70}};
  for (const Pattern pattern : test::kPatterns) {
    expect_works({2, 3, 3, 24, axis, axis}, pattern, 2, DType::kF32);
  }
}

TEST_P(AttentionReuseRows, OfBlocksThatRestartAtTheBorderOfTextAndImage) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{150, 64, {150, 100}, 37, position};
    expect_works({2, 2, 2, 24, axis, axis}, Pattern::kClustered, 1, dtype);
  }
}

// A slice of wider rows, with another tensor's columns between them.
TEST_P(AttentionReuseRows, ReadTermsWithStridesOfTheirOwn) {
  auto c = test::random_reuse({1, 2, 2, 24, {70, 32}, {70, 32}}, dtype, Pattern::kAllCached, 1,
                              DType::kF32);
  Tensor wide = test::canary_tensor(DType::kF32, {1, 70, 2, 40});
  const TensorView slice = wide.view().slice(3, 8, 32);
  for (index_t row = 0; row < 140; ++row) {
    for (index_t d = 0; d < 24; ++d) {
      store_float(wide, row * 40 + 8 + d, load_float(c.terms[0], row * 24 + d));
    }
  }
  AttentionPlan plan;
  backend->build_attention_plan(c.attention.sparsity.symbols(), plan, {});
  const ConstTensorView terms[] = {slice};
  attention(*backend, plan, c.attention.q, c.attention.k, c.attention.v, 1, c.attention.out,
            c.attention.lse, {}, {terms, c.coefficients});
  test::expect_correct(c);
}

FO_TEST_EVERY_BACKEND(AttentionReuseRows);

}  // namespace
}  // namespace flashomni
