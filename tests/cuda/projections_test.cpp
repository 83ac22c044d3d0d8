// GEMM-Q and GEMM-O on a GPU, against fp64.
#include "gpu.h"

namespace flashomni {
namespace {

using test::Axis;
using test::GemmQCase;
using test::OutputLayer;
using test::OutputShape;
using test::Pattern;
using test::Sparsity;
using test::TokenRange;

class GpuGemmQ : public test::GpuTest {
 protected:
  void expect_works(GemmQCase&& c) {
    SCOPED_TRACE(testing::Message()
                 << dtype_name(c.x.dtype()) << ", " << c.sparsity.num_heads << " heads, head_dim "
                 << c.head_dim << ", rows " << c.range.first << " + " << c.range.count << " by "
                 << c.sparsity.q.block);
    run(*backend, c);
    test::expect_correct(c);
  }
};

TEST_F(GpuGemmQ, EveryPatternInBothTypesAndHeadDims) {
  for (const DType dtype : test::kHalfTypes) {
    for (const int head_dim : test::kHeadDims) {
      for (const Pattern pattern : test::kPatterns) {
        const auto sparsity = test::projection_sparsity(2, 5, {400, 128, {400, 170}}, pattern);
        expect_works(test::random_gemm_q(sparsity, {0, 400}, 136, head_dim, dtype));
        GemmQCase c = test::random_gemm_q(sparsity, {0, 400}, 136, head_dim, dtype);
        test::add_norm_and_rope(c);
        expect_works(std::move(c));
      }
    }
  }
}

TEST_F(GpuGemmQ, EveryLengthBlockAndNumberOfHeads) {  // A7
  for (const int head_dim : test::kHeadDims) {
    for (const int tokens : {1, 63, 64, 65, 127, 128, 129, 545}) {
      for (const int block : {64, 100, 128}) {
        const auto sparsity = test::projection_sparsity(1, 3, {tokens, block}, Pattern::kRandom);
        expect_works(test::random_gemm_q(sparsity, {0, tokens}, 72, head_dim, DType::kBF16));
      }
    }
    for (const int heads : {1, 2, 24, 33}) {
      const auto sparsity = test::projection_sparsity(1, heads, {300, 128}, Pattern::kRandom);
      expect_works(test::random_gemm_q(sparsity, {0, 300}, 64, head_dim, DType::kBF16));
    }
  }
}

TEST_F(GpuGemmQ, OneStreamOfAJointSequence) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{350, 128, {350, 300}, 77, position};
    const auto sparsity = test::projection_sparsity(2, 3, axis, Pattern::kRandom);
    const bool text_first = position == TextPosition::kFirst;
    for (const int head_dim : test::kHeadDims) {
      expect_works(
          test::random_gemm_q(sparsity, {text_first ? 77 : 0, 273}, 72, head_dim, DType::kBF16));
      expect_works(
          test::random_gemm_q(sparsity, {text_first ? 0 : 273, 77}, 72, head_dim, DType::kBF16));
    }
  }
}

// More tiles than clusters of thread blocks: whole ones of every kind besides the halved ones of a
// last round, of which small cases are made.
TEST_F(GpuGemmQ, MoreTilesThanClusters) {
  for (const Pattern pattern : {Pattern::kRandom, Pattern::kAllLive}) {
    for (const int head_dim : test::kHeadDims) {
      const auto sparsity = test::projection_sparsity(2, 25, {900, 128, {900, 790}}, pattern);
      GemmQCase c = test::random_gemm_q(sparsity, {0, 900}, 136, head_dim, DType::kBF16);
      test::add_norm_and_rope(c);
      expect_works(std::move(c));
    }
  }
}

TEST_F(GpuGemmQ, SeveralProjectionsOfOneX) {
  for (const DType dtype : test::kHalfTypes) {
    for (const int head_dim : test::kHeadDims) {
      for (const int tokens : {70, 400, 1500}) {
        const auto make = [&](int heads, Pattern pattern, unsigned seed) {
          const auto sparsity = test::projection_sparsity(1, heads, {tokens, 128}, pattern, seed);
          return test::random_gemm_q(sparsity, {0, tokens}, 72, head_dim, dtype, seed);
        };
        std::vector<GemmQCase> cases;
        cases.push_back(make(9, Pattern::kRandom, 1));  // as Q, and K and V of grouped heads
        cases.push_back(make(3, Pattern::kAllLive, 40));
        cases.push_back(make(3, Pattern::kAllLive, 50));
        for (std::size_t i = 0; i < 2; ++i) test::add_norm_and_rope(cases[i], 60 + i);
        cases[1].bias = {};
        test::run_together(*backend, cases);
        for (const GemmQCase& c : cases) test::expect_correct(c);
        cases[0] = make(9, Pattern::kAllCached, 1);
        for (GemmQCase& c : cases) test::fill_canary(c.out);
        test::run_together(*backend, cases);
        for (const GemmQCase& c : cases) test::expect_correct(c);
      }
    }
  }
}

class GpuGemmO : public test::GpuTest {
 protected:
  void expect_update_and_dispatch_work(const Sparsity& sparsity, TokenRange range,
                                       const OutputShape& shape, DType dtype = DType::kBF16) {
    SCOPED_TRACE(testing::Message()
                 << dtype_name(dtype) << ", head_dim " << shape.head_dim << ", out_features "
                 << shape.out_features << ", mlp " << shape.mlp_dim << ", rows " << range.first
                 << " + " << range.count << (shape.compact_cache ? ", 16-bit cache" : ""));
    OutputLayer layer(*backend, sparsity, range, shape, 0, dtype);
    layer.update(sparsity, 1);
    layer.expect_correct();
    layer.new_inputs(50);
    layer.dispatch({1});
    layer.expect_correct();
  }
};

TEST_F(GpuGemmO, EveryPatternInBothTypesHeadDimsAndCaches) {
  for (const DType dtype : test::kHalfTypes) {
    for (const int head_dim : test::kHeadDims) {
      for (const bool compact : {false, true}) {
        for (const Pattern pattern : test::kPatterns) {
          const auto sparsity = test::projection_sparsity(2, 3, {300, 128, {300, 170}}, pattern);
          expect_update_and_dispatch_work(sparsity, {0, 300}, {head_dim, 136, 72, true, compact},
                                          dtype);
        }
      }
    }
  }
}

TEST_F(GpuGemmO, EveryWidthLengthAndBlock) {  // A5, A7
  for (const bool compact : {false, true}) {
    for (const int out_features : {8, 64, 120, 256, 264, 520, 1032}) {
      const auto sparsity = test::projection_sparsity(1, 3, {200, 128}, Pattern::kRandom);
      expect_update_and_dispatch_work(sparsity, {0, 200}, {64, out_features, 0, false, compact});
    }
    for (const int tokens : {1, 63, 64, 65, 127, 128, 129, 545}) {
      for (const int block : {64, 100, 128}) {
        const auto sparsity = test::projection_sparsity(1, 2, {tokens, block}, Pattern::kRandom);
        expect_update_and_dispatch_work(sparsity, {0, tokens}, {128, 136, 0, true, compact});
      }
    }
  }
}

TEST_F(GpuGemmO, AddsToAResidualThroughAGate) {
  for (const DType dtype : test::kHalfTypes) {
    for (const bool compact : {false, true}) {
      for (const Pattern pattern : test::kPatterns) {
        const auto sparsity = test::projection_sparsity(2, 3, {300, 128, {300, 170}}, pattern);
        for (const int out_features : {8, 136, 264}) {
          OutputShape shape{64, out_features, 72, true, compact, true, out_features != 136};
          expect_update_and_dispatch_work(sparsity, {0, 300}, shape, dtype);
        }
      }
    }
  }
}

// Whole tiles besides the halved ones of a last round, of which small cases are made.
TEST_F(GpuGemmO, MoreTilesThanClusters) {
  for (const bool adds : {false, true}) {
    const auto sparsity = test::projection_sparsity(1, 3, {1700, 128}, Pattern::kRandom);
    OutputShape shape{64, 2056, 72, true, true, adds};
    expect_update_and_dispatch_work(sparsity, {0, 1700}, shape);
  }
}

TEST_F(GpuGemmO, OneStreamOfAJointSequence) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{350, 128, {350, 300}, 77, position};
    const auto sparsity = test::projection_sparsity(2, 3, axis, Pattern::kRandom);
    const bool text_first = position == TextPosition::kFirst;
    expect_update_and_dispatch_work(sparsity, {text_first ? 77 : 0, 273}, {64, 136});
    expect_update_and_dispatch_work(sparsity, {text_first ? 0 : 273, 77}, {64, 136});
  }
}

TEST_F(GpuGemmO, OrdersGrowWhileTheCachedHeadsStay) {
  for (const bool compact : {false, true}) {
    const auto sparsity = test::projection_sparsity(2, 3, {300, 128, {300, 170}}, Pattern::kRandom);
    OutputLayer layer(*backend, sparsity, {0, 300}, {64, 264, 16, true, compact, compact}, 2,
                      DType::kBF16);
    for (const int valid : {0, 1, 2, 2}) {
      SCOPED_TRACE(valid);
      layer.update(sparsity, 6);
      layer.expect_correct();
      EXPECT_EQ(layer.valid_order(0), valid);
      for (const std::vector<float>& coefficients :
           std::vector<std::vector<float>>{{1, 3, 4.5f}, {1, 2}, {1}}) {
        layer.new_inputs(60);
        layer.dispatch(coefficients);
        layer.expect_correct();
      }
      layer.new_inputs(70 + valid);
    }
    auto changed = sparsity;
    changed.cache[1] ^= 1;
    layer.update(changed, 5);
    layer.expect_correct();
    EXPECT_EQ(layer.valid_order(0), 2);
    EXPECT_EQ(layer.valid_order(1), 0);
  }
}

TEST_F(GpuGemmO, CachedHeadsAndPaddingAreNeverReadByDispatch) {
  const auto sparsity = test::projection_sparsity(2, 3, {300, 128, {300, 170}}, Pattern::kRandom);
  OutputLayer layer(*backend, sparsity, {0, 300}, {64, 136, 16}, 0, DType::kBF16);
  layer.update(sparsity, 1);
  layer.dispatch({1});
  const Tensor clean = layer.out.clone();
  for (int row = 0; row < 2 * 300 * 3; ++row) {
    const int head = row % 3, token = row / 3 % 300, item = row / 900;
    if (test::is_live(sparsity, item, head, token)) continue;
    test::poison(layer.o.view()
                     .slice(0, item, item + 1)
                     .slice(1, token, token + 1)
                     .slice(2, head * 64, head * 64 + 64));
  }
  test::fill_canary(layer.out);
  layer.dispatch({1});
  EXPECT_TRUE(test::same_bits(layer.out, clean));
}

TEST_F(GpuGemmO, ReplaysInAGraph) {
  const DType dtype = DType::kBF16;
  const auto sparsity = test::projection_sparsity(1, 4, {300, 128}, Pattern::kRandom);
  const GemmPlan plan = test::make_plan(*backend, sparsity, {0, 300});
  const PackedWeight weight =
      backend->pack_weight(test::random_tensor(dtype, {264, 256}, 1, 0.1), dtype, 0);
  const Tensor o = test::upload(*backend, test::random_tensor(dtype, {1, 300, 256}, 2));
  const Tensor host = test::canary_tensor(dtype, {1, 300, 264});
  const Tensor out = test::upload(*backend, host), term = backend->allocate(dtype, {1, 300, 264});
  const Tensor orders = backend->allocate(DType::kU8, {1, 3});
  const OutputProjection projection{&weight, {}, o, {}, out};
  const BiasCacheView cache{0, {term}, orders};
  test::GpuStream stream;
  const float one[] = {1};
  const auto enqueue = [&] {
    gemm_o_update(*backend, plan, projection, 1, cache, stream.handle());
    gemm_o_dispatch(*backend, plan, projection, one, cache, stream.handle());
  };
  backend->synchronize({});
  enqueue();  // allocates the lists of the plan
  ASSERT_EQ(stream.synchronize(), cudaSuccess);
  const Tensor eager = Tensor::host(dtype, host.view().layout);
  const Tensor replayed = Tensor::host(dtype, host.view().layout);
  test::download(*backend, out, eager);
  backend->copy(host, out, {});
  backend->synchronize({});
  ASSERT_EQ(stream.capture_and_replay(enqueue, 2), cudaSuccess);
  test::download(*backend, out, replayed);
  EXPECT_TRUE(test::same_bits(eager, replayed));
}

}  // namespace
}  // namespace flashomni
