// Random shapes, a fixed seed: what nobody thought of.
#include "attention_case.h"
#include "output_case.h"

namespace flashomni {
namespace {

using test::Axis;
using test::Pattern;

constexpr int kRounds = 30;

class Fuzz : public test::BackendTest {
 protected:
  int between(int low, int high) { return low + static_cast<int>(random_() % (high - low + 1)); }
  int one_of(std::vector<int> values) { return values[random_() % values.size()]; }
  Pattern pattern() { return test::kPatterns[random_() % std::size(test::kPatterns)]; }
  unsigned seed() { return static_cast<unsigned>(random_() % 100000); }

  Axis axis(int batch) {
    Axis axis{one_of({between(1, 40), between(1, 200), 32 * between(1, 5)}),
              one_of({between(1, 50), 16, 32, 64, 128})};
    if (between(0, 2) == 0) {
      axis.text = between(0, axis.tokens);
      axis.position = between(0, 1) ? TextPosition::kFirst : TextPosition::kLast;
    }
    if (between(0, 1)) {
      for (int item = 0; item < batch; ++item) axis.lengths.push_back(between(0, axis.tokens));
    }
    return axis;
  }
  // A stream of `axis`: text, image or all of it.
  test::TokenRange stream(const Axis& axis) {
    const int first = axis.position == TextPosition::kLast ? axis.tokens - axis.text : axis.text;
    if (axis.text == 0 || between(0, 2) == 0) return {0, axis.tokens};
    return between(0, 1) ? test::TokenRange{0, first}
                         : test::TokenRange{first, axis.tokens - first};
  }

 private:
  std::mt19937 random_{20250422};
};

std::string describe(const Axis& axis) {
  std::string text = std::to_string(axis.tokens) + " tokens in blocks of " +
                     std::to_string(axis.block) + ", text " + std::to_string(axis.text) +
                     (axis.position == TextPosition::kLast ? " last" : "") + ", lengths";
  for (const int length : axis.lengths) text += " " + std::to_string(length);
  return text;
}

TEST_P(Fuzz, Attention) {
  for (int round = 0; round < kRounds && !HasFailure(); ++round) {
    test::AttentionShape shape;
    shape.batch = between(1, 3);
    shape.num_kv_heads = between(1, 3);
    shape.num_heads = shape.num_kv_heads * between(1, 2);
    shape.head_dim = 8 * one_of({between(1, 4), between(1, 17)});
    shape.q = axis(shape.batch);
    shape.kv = axis(shape.batch);
    const Pattern which = pattern();
    SCOPED_TRACE(testing::Message()
                 << "round " << round << ": " << shape.num_heads << " heads over "
                 << shape.num_kv_heads << ", head_dim " << shape.head_dim << ", q "
                 << describe(shape.q) << "; kv " << describe(shape.kv) << "; pattern "
                 << static_cast<int>(which));
    auto c = test::random_attention(shape, dtype, which, seed());
    test::run(*backend, c);
    test::expect_correct(c);
  }
}

TEST_P(Fuzz, GemmQ) {
  for (int round = 0; round < kRounds && !HasFailure(); ++round) {
    const int batch = between(1, 3), heads = one_of({between(1, 6), between(1, 40)});
    const int head_dim = 8 * one_of({1, between(1, 4), between(1, 17)});
    const Axis tokens = axis(batch);
    const auto sparsity = test::projection_sparsity(batch, heads, tokens, pattern(), seed());
    auto c =
        test::random_gemm_q(sparsity, stream(tokens), one_of({between(1, 90), between(1, 600)}),
                            head_dim, dtype, seed());
    if (between(0, 1)) test::add_norm_and_rope(c, seed());
    if (between(0, 3) == 0) c.bias = {};
    SCOPED_TRACE(testing::Message()
                 << "round " << round << ": " << heads << " heads, head_dim " << head_dim
                 << ", in_features " << c.x.size(2) << ", rows " << c.range.first << " + "
                 << c.range.count << " of " << describe(tokens));
    test::run(*backend, c);
    test::expect_correct(c);
  }
}

TEST_P(Fuzz, GemmO) {
  for (int round = 0; round < kRounds / 2 && !HasFailure(); ++round) {
    const int batch = between(1, 2), heads = one_of({between(1, 6), between(1, 40)});
    const int order = between(-1, 2);
    const Axis tokens = axis(batch);
    const test::TokenRange range = stream(tokens);
    const test::OutputShape shape{8 * one_of({1, between(1, 9)}), between(1, 90),
                                  between(0, 1) * one_of({between(1, 60), between(1, 400)}),
                                  between(0, 1) == 1};
    auto sparsity = test::projection_sparsity(batch, heads, tokens, pattern(), seed());
    SCOPED_TRACE(testing::Message()
                 << "round " << round << ": " << heads << " heads, head_dim " << shape.head_dim
                 << ", out_features " << shape.out_features << ", mlp " << shape.mlp_dim
                 << ", order " << order << ", rows " << range.first << " + " << range.count
                 << " of " << describe(tokens));
    test::OutputLayer layer(*backend, sparsity, range, shape, order, dtype, seed());
    for (int update = 0; update < 3; ++update) {
      if (between(0, 2) == 0 && !sparsity.cache.empty()) {
        sparsity.cache[between(0, static_cast<int>(sparsity.cache.size()) - 1)] ^= 1;
      }
      layer.update(sparsity, static_cast<float>(between(1, 6)));
      layer.expect_correct();
      layer.new_inputs(seed());
      if (order < 0) continue;
      std::vector<float> coefficients = {1, 2, 2};
      coefficients.resize(between(1, order + 1));
      layer.dispatch(coefficients);
      layer.expect_correct();
      layer.new_inputs(seed());
    }
  }
}

FO_TEST_EVERY_BACKEND(Fuzz);

}  // namespace
}  // namespace flashomni
