// GEMM-Q, GEMM-O and linear layers on a GPU, against fp64.
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
    OutputLayer layer(*backend, sparsity, {0, 300}, {64, 264, 16, true, compact}, 2, DType::kBF16);
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

// --- the other operations, against the reference backend ---

class GpuOperations : public test::GpuTest {
 protected:
  std::unique_ptr<Backend> reference = make_backend("reference", {});

  // Calls operate(backend, upload, out) on both and compares what is written to `out`.
  template <typename Operate>
  void expect_same(const Tensor& blank, double tolerance, Operate&& operate) {
    Tensor results[2];
    Backend* backends[2] = {reference.get(), backend.get()};
    for (int i = 0; i < 2; ++i) {
      const Tensor out = test::upload(*backends[i], blank);
      operate(*backends[i], out);
      results[i] = blank.clone();
      test::download(*backends[i], out, results[i]);
    }
    for (index_t i = 0; i < blank.num_elements(); ++i) {
      const double wanted = load_float(results[0], i), is = load_float(results[1], i);
      if (std::isnan(wanted)) {  // the canary of what is not to be written
        ASSERT_TRUE(std::isnan(is)) << i;
      } else {
        ASSERT_NEAR(is, wanted, tolerance * (1 + std::abs(wanted))) << i;
      }
    }
  }
};

TEST_F(GpuOperations, Linear) {
  for (const Activation activation :
       {Activation::kNone, Activation::kGeluTanh, Activation::kSilu}) {
    for (const DType out_type : {DType::kF32, DType::kBF16}) {
      const Tensor x = test::random_tensor(DType::kBF16, {333, 520}, 1);
      const Tensor w = test::random_tensor(DType::kBF16, {408, 520}, 2, 0.05);
      const Tensor bias = test::random_tensor(DType::kF32, {408}, 3);
      expect_same(test::canary_tensor(out_type, {333, 408}), out_type == DType::kF32 ? 2e-5 : 8e-3,
                  [&](Backend& b, const Tensor& out) {
                    const PackedWeight weight = b.pack_weight(w, DType::kBF16, 0);
                    const Tensor device_x = test::upload(b, x), device_bias = test::upload(b, bias);
                    b.linear(device_x, weight, device_bias, activation, out, {});
                    b.synchronize({});
                  });
    }
  }
}

// Rows of a larger matrix, sizes that no tile divides, one row; the columns beside stay as they
// are.
TEST_F(GpuOperations, LinearOfF32) {
  for (const index_t rows : {1, 70}) {
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kSilu}) {
      const Tensor x = test::random_tensor(DType::kF32, {rows, 61}, 1);
      const Tensor w = test::random_tensor(DType::kF32, {131, 45}, 2);
      const Tensor bias = test::random_tensor(DType::kF32, {131}, 3);
      expect_same(test::canary_tensor(DType::kF32, {rows, 140}), 1e-5,
                  [&](Backend& b, const Tensor& out) {
                    const PackedWeight weight = b.pack_weight(w, DType::kF32, 0);
                    const Tensor device_x = test::upload(b, x), device_bias = test::upload(b, bias);
                    b.linear(device_x.view().slice(1, 8, 53), weight,
                             rows == 1 ? ConstTensorView() : device_bias.view(), activation,
                             out.view().slice(1, 5, 136), {});
                    b.synchronize({});
                  });
    }
  }
}

TEST_F(GpuOperations, NormResidualAndForecast) {
  const Tensor x = test::random_tensor(DType::kF32, {70, 200}, 1);
  const Tensor shift = test::random_tensor(DType::kF32, {200}, 2);
  const Tensor scale = test::random_tensor(DType::kF32, {200}, 3);
  const Tensor y = test::random_tensor(DType::kF32, {70, 200}, 9);
  expect_same(test::canary_tensor(DType::kF32, {70, 200}), 1e-5,
              [&](Backend& b, const Tensor& out) {
                const Tensor dx = test::upload(b, x), ds = test::upload(b, shift);
                const Tensor dc = test::upload(b, scale);
                b.norm_modulate(dx, ds, dc, 1e-6f, out, {});
                b.synchronize({});
              });
  expect_same(x, 1e-6, [&](Backend& b, const Tensor& out) {
    const Tensor dx = test::upload(b, x), gate = test::upload(b, scale);
    b.gated_add(dx, gate, out, {});
    b.synchronize({});
  });
  expect_same(test::canary_tensor(DType::kF32, {70, 200}), 1e-5,
              [&](Backend& b, const Tensor& out) {
                const Tensor terms[2] = {test::upload(b, x), test::upload(b, x)};
                const TensorView views[2] = {terms[0], terms[1]};
                const Tensor value = test::upload(b, y);
                b.push_differences(value, 1, 3, views, {});
                const float coefficients[2] = {1, 2};
                b.forecast(views, coefficients, out, {});
                b.synchronize({});
              });
}

TEST_F(GpuOperations, BlockScores) {
  const Axis axis{300, 64, {300, 170}, 77, TextPosition::kFirst};
  const Tensor q = test::random_tensor(DType::kBF16, {2, 300, 6, 128}, 1);
  const Tensor k = test::random_tensor(DType::kBF16, {2, 300, 2, 128}, 2);
  BlockScores scores[2];
  Backend* backends[2] = {reference.get(), backend.get()};
  for (int i = 0; i < 2; ++i) {
    const Tensor dq = test::upload(*backends[i], q), dk = test::upload(*backends[i], k);
    backends[i]->block_scores(dq, dk, axis.grid(2), axis.grid(2), {0, true, true, true}, scores[i],
                              {});
  }
  const auto expect_near = [](const std::vector<float>& a, const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
  };
  expect_near(scores[0].logits, scores[1].logits);
  expect_near(scores[0].q_similarity, scores[1].q_similarity);
  expect_near(scores[0].k_similarity, scores[1].k_similarity);
}

}  // namespace
}  // namespace flashomni
