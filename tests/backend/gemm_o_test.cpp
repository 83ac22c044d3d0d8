// What gemm.h promises of GEMM-O, on every backend.
#include "flashomni/error.h"

#include "output_case.h"

namespace flashomni {
namespace {

using test::Axis;
using test::OutputLayer;
using test::OutputShape;
using test::Pattern;
using test::Sparsity;
using test::TokenRange;

class GemmO : public test::BackendTest {
 protected:
  // An update with caching, a dispatch with new inputs, each compared with the oracle.
  void expect_update_and_dispatch_work(const Sparsity& sparsity, TokenRange range,
                                       const OutputShape& shape) {
    SCOPED_TRACE(testing::Message()
                 << "batch " << sparsity.batch << ", " << sparsity.num_heads << " heads, head_dim "
                 << shape.head_dim << ", out_features " << shape.out_features << ", mlp "
                 << shape.mlp_dim << ", rows " << range.first << " + " << range.count);
    OutputLayer layer(*backend, sparsity, range, shape, 0, dtype);
    layer.update(sparsity, 1);
    layer.expect_correct();
    layer.new_inputs(50);
    layer.dispatch({1});
    layer.expect_correct();
  }
  Sparsity symbols(Pattern pattern, unsigned seed = 1) {
    return test::projection_sparsity(2, 3, {100, 32, {100, 70}}, pattern, seed);
  }
};

TEST_P(GemmO, UpdateIsTheDenseProjectionAndDispatchAddsLiveHeadsToTheCache) {
  for (const Pattern pattern : test::kPatterns) {
    expect_update_and_dispatch_work(symbols(pattern), {0, 100}, {});
  }
}

TEST_P(GemmO, WorksAtEveryHeadDim) {
  for (const int head_dim : {8, 24, 64, 128}) {
    expect_update_and_dispatch_work(symbols(Pattern::kRandom), {0, 100}, {head_dim});
  }
}

TEST_P(GemmO, RefusesAHeadDimThatItHasNoKernelFor) {
  for (const int head_dim : {1, 2, 3, 4, 5, 7, 12, 20, 33, 100}) {
    try {
      expect_update_and_dispatch_work(symbols(Pattern::kRandom), {0, 100}, {head_dim, 40, 7});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
      EXPECT_NE(head_dim % 8, 0) << error.what();
    }
  }
}

TEST_P(GemmO, WorksAtEveryWidth) {
  for (const int out_features : {1, 15, 64, 130}) {
    expect_update_and_dispatch_work(symbols(Pattern::kRandom), {0, 100}, {8, out_features});
  }
}

TEST_P(GemmO, EveryHeadHasASymbolOfItsOwn) {
  for (const int heads : {1, 3, 5, 33}) {
    const auto sparsity = test::projection_sparsity(1, heads, {70, 32}, Pattern::kRandom);
    expect_update_and_dispatch_work(sparsity, {0, 70}, {8});
  }
}

TEST_P(GemmO, WorksAtEveryLengthAndBlock) {  // A7
  for (const int tokens : {1, 127, 128, 129, 300}) {
    const auto sparsity = test::projection_sparsity(1, 2, {tokens, 64}, Pattern::kRandom);
    expect_update_and_dispatch_work(sparsity, {0, tokens}, {8, 16});
  }
  for (const int block : {5, 32, 128, 1000}) {
    const auto sparsity = test::projection_sparsity(1, 2, {300, block}, Pattern::kRandom);
    expect_update_and_dispatch_work(sparsity, {0, 300}, {8, 16});
  }
}

// proj_out over concat[attention, mlp], whose width is not heads * head_dim (A6).
TEST_P(GemmO, TheMlpPartIsAlwaysAddedAndNeverCached) {
  for (const Pattern pattern : {Pattern::kRandom, Pattern::kAllCached, Pattern::kAllLive}) {
    expect_update_and_dispatch_work(symbols(pattern), {0, 100}, {24, 40, 96});
    expect_update_and_dispatch_work(symbols(pattern), {0, 100}, {8, 40, 7});
  }
}

TEST_P(GemmO, AddsToAResidualThroughAGate) {
  for (const Pattern pattern : test::kPatterns) {
    for (const bool gate : {false, true}) {
      OutputShape shape{24, 40, 16};
      shape.adds = true;
      shape.gate = gate;
      expect_update_and_dispatch_work(symbols(pattern), {0, 100}, shape);
      shape.out_features = 130;
      expect_update_and_dispatch_work(symbols(pattern), {0, 100}, shape);
    }
  }
}

TEST_P(GemmO, BiasIsOptional) {
  expect_update_and_dispatch_work(symbols(Pattern::kRandom), {0, 100}, {24, 40, 0, false});
}

TEST_P(GemmO, ProjectsOneStreamOfAJointSequence) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{150, 32, {150, 100}, 37, position};
    const auto sparsity = test::projection_sparsity(2, 3, axis, Pattern::kRandom);
    const bool text_first = position == TextPosition::kFirst;
    expect_update_and_dispatch_work(sparsity, {text_first ? 37 : 0, 113}, {8});
    expect_update_and_dispatch_work(sparsity, {text_first ? 0 : 113, 37}, {8});
  }
}

// H = 3, D = 2, two tokens, heads 0 and 2 cached; D is padded with zeros to 8.
TEST_P(GemmO, ReproducesTheIntegerExample) {
  Sparsity sparsity = test::projection_sparsity(1, 3, {2, 2}, Pattern::kAllLive);
  sparsity.cache[0] = sparsity.cache[2] = 0;
  OutputLayer layer(*backend, sparsity, {0, 2}, {8, 2}, 0, dtype);
  const float o[2][3][2] = {{{1, 2}, {0, 1}, {2, 0}}, {{3, 4}, {1, 0}, {0, 2}}};
  const float w[3][2][2] = {{{1, 0}, {0, 1}}, {{1, 1}, {0, 1}}, {{2, 0}, {1, 1}}};
  layer.weight() = Tensor::host_zeros(dtype, {2, 24});
  layer.o = Tensor::host_zeros(dtype, {1, 2, 24});
  for (int i = 0; i < 12; ++i) {
    const int head = i / 4, in = i / 2 % 2, token = i / 2 % 2, feature = i % 2;
    store_float(layer.weight(), feature * 24 + head * 8 + in, w[head][in][feature]);
    store_float(layer.o, token * 24 + head * 8 + i % 2, o[token][head][i % 2]);
  }
  layer.bias().as<float>()[0] = 1;
  layer.bias().as<float>()[1] = -1;
  const auto expect_exactly = [](ConstTensorView actual, std::array<float, 4> wanted) {
    for (int i = 0; i < 4; ++i) EXPECT_EQ(load_float(actual, i), wanted[i]) << i;
  };
  layer.update(sparsity, 1);
  layer.expect_correct();
  expect_exactly(layer.term(0), {6, 1, 6, 5});
  expect_exactly(layer.out, {6, 2, 7, 6});

  store_float(layer.o, 8, 1);  // head 1 of token 0: (1, 1)
  store_float(layer.o, 9, 1);
  store_float(layer.o, 24 + 8, 2);  // of token 1: (2, 0)
  store_float(layer.o, 24 + 9, 0);
  layer.dispatch({1});
  layer.expect_correct();
  expect_exactly(layer.out, {7, 3, 8, 7});
}

TEST_P(GemmO, DispatchWithUnchangedInputsReproducesTheUpdate) {
  for (const Pattern pattern : test::kPatterns) {
    const auto sparsity = symbols(pattern);
    OutputLayer layer(*backend, sparsity, {0, 100}, {24, 40, 16}, 0, dtype);
    layer.update(sparsity, 1);
    layer.dispatch({1});
    layer.expect_correct();
  }
}

TEST_P(GemmO, AllLiveDispatchEqualsTheDenseProjectionBitForBit) {
  const auto sparsity = symbols(Pattern::kAllLive);
  OutputLayer layer(*backend, sparsity, {0, 100}, {24, 40, 16}, 1, dtype);
  layer.update(sparsity, 1);
  const Tensor dense = layer.out.clone();
  test::fill_canary(layer.out);
  layer.dispatch({1});
  EXPECT_TRUE(test::same_bits(layer.out, dense));

  OutputLayer forgetful(*backend, sparsity, {0, 100}, {24, 40, 16}, -1, dtype);
  forgetful.update(sparsity, 1);
  forgetful.expect_correct();
  EXPECT_TRUE(test::same_bits(forgetful.out, dense));
}

TEST_P(GemmO, CachedHeadsAreNeverReadByDispatch) {
  const auto sparsity = symbols(Pattern::kRandom);
  OutputLayer layer(*backend, sparsity, {0, 100}, {8, 40, 16}, 0, dtype);
  layer.update(sparsity, 1);
  layer.dispatch({1});
  const Tensor clean = layer.out.clone();
  int poisoned = 0;
  for (int item = 0; item < 2; ++item) {
    for (int row = 0; row < 100; ++row) {
      for (int head = 0; head < 3; ++head) {
        if (test::is_live(sparsity, item, head, row)) continue;
        test::poison(layer.o.view()
                         .slice(0, item, item + 1)
                         .slice(1, row, row + 1)
                         .slice(2, head * 8, head * 8 + 8));
        ++poisoned;
      }
    }
  }
  test::poison(layer.mlp.view().slice(0, 1, 2).slice(1, 70, 100));
  ASSERT_GT(poisoned, 50);
  test::fill_canary(layer.out);
  layer.dispatch({1});
  EXPECT_TRUE(test::same_bits(layer.out, clean));
}

TEST_P(GemmO, OrdersGrowWhileTheCachedHeadsStay) {
  const auto sparsity = symbols(Pattern::kRandom);
  OutputLayer layer(*backend, sparsity, {0, 100}, {8, 24, 16}, 2, dtype);
  for (const int valid : {0, 1, 2, 2}) {
    SCOPED_TRACE(valid);
    layer.update(sparsity, 6);
    layer.expect_correct();
    EXPECT_EQ(layer.valid_order(0), valid);
    for (const std::vector<float>& coefficients : std::vector<std::vector<float>>{
             {1, 3, 4.5f}, {1, 3, 13.5f}, {1, 2}, {1}}) {  // Taylor, Newton, lower orders
      layer.new_inputs(60);
      layer.dispatch(coefficients);
      layer.expect_correct();
    }
    layer.new_inputs(70 + valid);
  }
}

TEST_P(GemmO, RemembersInTheDtypeThatTheBackendAsksFor) {
  const auto sparsity = symbols(Pattern::kRandom);
  OutputLayer layer(*backend, sparsity, {0, 100}, {64, 136, 16, true, true}, 2, dtype);
  for (const int valid : {0, 1, 2}) {
    layer.update(sparsity, 6);
    layer.expect_correct();
    EXPECT_EQ(layer.valid_order(0), valid);
    layer.new_inputs(60 + valid);
    layer.dispatch({1, 3, 4.5f});
    layer.expect_correct();
  }
}

TEST_P(GemmO, ARowBlockWhoseCachedHeadsChangeStartsAgain) {
  const auto first = symbols(Pattern::kRandom);
  auto second = first;
  second.cache[1] ^= 1;  // item 0, head 0, block 1; the other row blocks stay
  OutputLayer layer(*backend, first, {0, 100}, {8, 24}, 2, dtype);
  layer.update(first, 5);
  layer.new_inputs(80);
  layer.update(first, 5);
  layer.new_inputs(81);
  layer.update(second, 5);
  layer.expect_correct();
  EXPECT_EQ(layer.valid_order(0), 2);
  EXPECT_EQ(layer.valid_order(1), 0);
  layer.new_inputs(82);
  layer.dispatch({1, 2, 2});
  layer.expect_correct();
  layer.new_inputs(83);
  layer.update(second, 3);
  layer.expect_correct();
  EXPECT_EQ(layer.valid_order(1), 1);
  layer.dispatch({1, 2, 2});
  layer.expect_correct();
}

// A head with heads on both sides cached, and the reverse, so that an order of heads shows.
TEST_P(GemmO, CachedAndLiveHeadsMayInterleave) {
  for (const int parity : {0, 1}) {
    auto sparsity = test::projection_sparsity(1, 5, {70, 32}, Pattern::kAllLive);
    for (int row = 0; row < 5 * 3; ++row) sparsity.cache[row] = (row / 3 + row + parity) % 2;
    expect_update_and_dispatch_work(sparsity, {0, 70}, {24, 40, 8});
  }
}

TEST_P(GemmO, ACoefficientScalesTheWholeCache) {
  const auto sparsity = symbols(Pattern::kAllCached);
  OutputLayer layer(*backend, sparsity, {0, 100}, {8, 24}, 0, dtype);
  layer.update(sparsity, 1);
  layer.dispatch({0.5f});
  layer.expect_correct();
}

FO_TEST_EVERY_BACKEND(GemmO);

}  // namespace
}  // namespace flashomni
