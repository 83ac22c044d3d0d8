// Linear layers and the operations on elements on a GPU, against the reference backend.
#include "gpu.h"

namespace flashomni {
namespace {

using test::Axis;

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

// By the number of row tiles, two of them or two column tiles go together; 17 leave one alone.
TEST_F(GpuOperations, LinearOfEveryNumberOfRows) {
  for (const int rows : {1, 128, 129, 384, 1100, 2100}) {
    const Tensor x = test::random_tensor(DType::kBF16, {rows, 136}, 1);
    const Tensor w = test::random_tensor(DType::kBF16, {1032, 136}, 2, 0.05);
    expect_same(test::canary_tensor(DType::kBF16, {rows, 1032}), 8e-3,
                [&](Backend& b, const Tensor& out) {
                  const PackedWeight weight = b.pack_weight(w, DType::kBF16, 0);
                  const Tensor device_x = test::upload(b, x);
                  b.linear(device_x, weight, {}, Activation::kNone, out, {});
                  b.synchronize({});
                });
  }
}

// Each reads what the one before wrote, and writes what that read; none is waited for.
TEST_F(GpuOperations, LinearLayersInARowWaitForEachOther) {
  const Tensor w = test::random_tensor(DType::kBF16, {512, 512}, 2, 0.05);
  const Tensor x = test::random_tensor(DType::kBF16, {2000, 512}, 1);
  const PackedWeight weight = backend->pack_weight(w, DType::kBF16, 0);
  Tensor results[2];
  for (const bool waits : {true, false}) {
    const Tensor a = test::upload(*backend, x), b = test::upload(*backend, x);
    for (int layer = 0; layer < 40; ++layer) {
      const bool forth = layer % 2 == 0;
      backend->linear(forth ? a : b, weight, {}, Activation::kNone, forth ? b : a, {});
      if (waits) backend->synchronize({});
    }
    results[waits] = x.clone();
    test::download(*backend, a, results[waits]);
  }
  EXPECT_TRUE(test::same_bits(results[0], results[1]));
}

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
