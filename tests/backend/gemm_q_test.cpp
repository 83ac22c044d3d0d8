// What gemm.h promises of GEMM-Q, on every backend.
#include "flashomni/error.h"

#include "gemm_case.h"

namespace flashomni {
namespace {

using test::Axis;
using test::GemmQCase;
using test::Pattern;

class GemmQ : public test::BackendTest {
 protected:
  void expect_works(GemmQCase c) {
    SCOPED_TRACE(testing::Message()
                 << "batch " << c.sparsity.batch << ", " << c.sparsity.num_heads
                 << " heads, head_dim " << c.head_dim << ", rows " << c.range.first << " + "
                 << c.range.count << ", in_features " << c.x.size(2));
    test::run(*backend, c);
    test::expect_correct(c);
  }
  GemmQCase whole_sequence(int heads, int head_dim, int in, const Axis& axis, Pattern pattern) {
    return test::random_gemm_q(test::projection_sparsity(1, heads, axis, pattern), {0, axis.tokens},
                               in, head_dim, dtype);
  }
};

TEST_P(GemmQ, LiveTilesEqualTheProjectionAndTheOthersAreNotWritten) {
  for (const Pattern pattern : test::kPatterns) {
    expect_works(whole_sequence(3, 24, 40, {150, 32}, pattern));
  }
}

// Two heads of 64 in a tile of 128 columns: the second head's bit counts too (A5).
TEST_P(GemmQ, EveryHeadHasASymbolOfItsOwn) {
  for (const int cached : {0, 1}) {
    GemmQCase c = whole_sequence(2, 64, 40, {70, 32}, Pattern::kAllLive);
    for (int block = 0; block < 3; ++block) c.sparsity.cache[cached * 3 + block] = 0;
    expect_works(std::move(c));
  }
  for (const int heads : {1, 3, 5, 33}) {
    expect_works(whole_sequence(heads, 8, 24, {70, 32}, Pattern::kRandom));
  }
}

TEST_P(GemmQ, WorksAtEveryHeadDimAndWidth) {
  for (const int head_dim : {8, 24, 64, 128}) {
    expect_works(whole_sequence(2, head_dim, 72, {70, 32}, Pattern::kRandom));
  }
  for (const int in : {1, 7, 33, 130}) {
    expect_works(whole_sequence(2, 24, in, {40, 32}, Pattern::kRandom));
  }
}

TEST_P(GemmQ, RefusesAHeadDimThatItHasNoKernelFor) {
  for (const int head_dim : {1, 2, 3, 4, 5, 7, 12, 20, 33, 100}) {
    try {
      expect_works(whole_sequence(3, head_dim, 41, {40, 32}, Pattern::kRandom));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
      EXPECT_NE(head_dim % 8, 0) << error.what();
    }
  }
}

TEST_P(GemmQ, WorksAtEveryLengthAndBlock) {  // A7
  for (const int tokens : {1, 127, 128, 129, 300}) {
    expect_works(whole_sequence(2, 8, 16, {tokens, 64}, Pattern::kRandom));
  }
  for (const int block : {5, 32, 128, 1000}) {
    expect_works(whole_sequence(2, 8, 16, {300, block}, Pattern::kRandom));
  }
}

TEST_P(GemmQ, ProjectsOneStreamOfAJointSequence) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{150, 32, {150, 100}, 37, position};
    const auto sparsity = test::projection_sparsity(2, 3, axis, Pattern::kRandom);
    const int image = 150 - 37;
    const bool text_first = position == TextPosition::kFirst;
    expect_works(test::random_gemm_q(sparsity, {text_first ? 37 : 0, image}, 24, 8, dtype));
    expect_works(test::random_gemm_q(sparsity, {text_first ? 0 : image, 37}, 24, 8, dtype));
  }
}

TEST_P(GemmQ, RowsPastALengthAreNotWritten) {
  const auto sparsity = test::projection_sparsity(3, 2, {150, 32, {150, 65, 0}}, Pattern::kAllLive);
  expect_works(test::random_gemm_q(sparsity, {0, 150}, 24, 8, dtype));
}

TEST_P(GemmQ, NormalisesAndRotatesFinishedTiles) {
  for (const int head_dim : {8, 24, 64, 128}) {
    const auto sparsity = test::projection_sparsity(2, 3, {70, 32, {70, 50}}, Pattern::kRandom);
    GemmQCase c = test::random_gemm_q(sparsity, {0, 70}, 40, head_dim, dtype);
    test::add_norm_and_rope(c);
    expect_works(std::move(c));
  }
}

// The angles belong to rows of the matrix, not to tokens of the joint sequence.
TEST_P(GemmQ, AnglesAreCountedFromTheFirstRow) {
  const auto sparsity =
      test::projection_sparsity(1, 2, {100, 32, {}, 37, TextPosition::kFirst}, Pattern::kAllLive);
  GemmQCase c = test::random_gemm_q(sparsity, {37, 63}, 24, 8, dtype);
  test::add_norm_and_rope(c);
  expect_works(std::move(c));
}

TEST_P(GemmQ, NormRopeAndBiasAreOptionalEach) {
  for (int given = 0; given < 8; ++given) {
    SCOPED_TRACE(given);
    GemmQCase c = whole_sequence(2, 24, 40, {40, 32}, Pattern::kRandom);
    test::add_norm_and_rope(c);
    if (!(given & 1)) c.bias = {};
    if (!(given & 2)) c.norm_weight = {};
    if (!(given & 4)) {
      c.cos = {};
      c.sin = {};
    }
    expect_works(std::move(c));
  }
}

// As Q, K and V are: K of fewer heads, V without norm and rotation, each with its own plan.
TEST_P(GemmQ, SeveralProjectionsOfOneX) {
  std::vector<GemmQCase> cases;
  cases.push_back(whole_sequence(4, 24, 40, {70, 32}, Pattern::kRandom));
  cases.push_back(whole_sequence(2, 24, 40, {70, 32}, Pattern::kAllLive));
  cases.push_back(whole_sequence(2, 24, 40, {70, 32}, Pattern::kAllCached));
  for (std::size_t i = 0; i < 2; ++i) {
    cases[i].weight = test::random_tensor(dtype, cases[i].weight.view().layout, 20 + i, 0.2);
    test::add_norm_and_rope(cases[i], 30 + i);
  }
  test::run_together(*backend, cases);
  for (const GemmQCase& c : cases) test::expect_correct(c);
}

TEST_P(GemmQ, TheNormOfAZeroTileIsZero) {
  GemmQCase c = whole_sequence(2, 24, 40, {40, 32}, Pattern::kAllLive);
  test::add_norm_and_rope(c);
  c.bias = {};
  c.x = Tensor::host_zeros(dtype, {1, 40, 40});
  expect_works(std::move(c));
}

TEST_P(GemmQ, DoesNotReadRowsWithoutALiveHead) {
  const auto sparsity = test::projection_sparsity(1, 2, {100, 32, {90}}, Pattern::kAllLive);
  GemmQCase c = test::random_gemm_q(sparsity, {0, 100}, 24, 8, dtype);
  c.sparsity.cache[1] = c.sparsity.cache[4 + 1] = 0;  // block 1 of both heads
  test::run(*backend, c);
  test::expect_correct(c);
  Tensor clean = c.out.clone();
  test::poison(c.x.view().slice(1, 32, 64));
  test::poison(c.x.view().slice(1, 90, 100));
  test::fill_canary(c.out);
  test::run(*backend, c);
  EXPECT_TRUE(test::same_bits(c.out, clean));
}

TEST_P(GemmQ, InputAndOutputMayBeColumnSlices) {
  GemmQCase c = whole_sequence(2, 24, 40, {70, 32}, Pattern::kRandom);
  test::run(*backend, c);
  const Tensor x = test::canary_tensor(dtype, {1, 70, 100});
  const Tensor out = test::canary_tensor(dtype, {1, 70, 60});
  const Tensor expected = test::canary_tensor(dtype, {1, 70, 60});
  const index_t size = size_in_bytes(dtype);
  for (index_t row = 0; row < 70; ++row) {
    std::memcpy(x.as<char>() + (row * 100 + 8) * size, c.x.as<char>() + row * 40 * size,
                static_cast<std::size_t>(40 * size));
    std::memcpy(expected.as<char>() + (row * 60 + 9) * size, c.out.as<char>() + row * 48 * size,
                static_cast<std::size_t>(48 * size));
  }
  const Tensor device_x = test::upload(*backend, x), device_out = test::upload(*backend, out);
  const Tensor bias = test::upload(*backend, c.bias);
  const PackedWeight weight = backend->pack_weight(c.weight, dtype, 24);
  gemm_q(*backend, test::make_plan(*backend, c.sparsity, c.range), device_x.view().slice(2, 8, 48),
         weight, bias, {}, device_out.view().slice(2, 9, 57));
  test::download(*backend, device_out, out);
  EXPECT_TRUE(test::same_bits(out, expected));
}

FO_TEST_EVERY_BACKEND(GemmQ);

}  // namespace
}  // namespace flashomni
