// What backend.h promises of the dense operators, on every backend.
#include <cmath>
#include <numbers>

#include "gemm_case.h"

namespace flashomni {
namespace {

using test::Expected;
using test::ExpectedTensor;
using test::few_operations_error;
using test::stored;
using test::upload;

class DenseOps : public test::BackendTest {
 protected:
  // Runs op(device tensor) on a canary of the given layout and returns what came back.
  template <typename Op>
  Tensor result_of(DType out_dtype, Layout layout, Op&& op) {
    Tensor out = test::canary_tensor(out_dtype, layout);
    const Tensor device_out = upload(*backend, out);
    op(device_out.view());
    test::download(*backend, device_out, out);
    return out;
  }
};

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kGeluTanh:
      return 0.5 * x *
             (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kNone: break;
  }
  return x;
}

ExpectedTensor linear_oracle(ConstTensorView x, ConstTensorView w, ConstTensorView bias,
                             Activation activation, DType out_dtype) {
  const auto xs = test::values_of(x), ws = test::values_of(w);
  const int in = static_cast<int>(x.size(1));
  ExpectedTensor expected;
  for (index_t n = 0; n < x.size(0) * w.size(0); ++n) {
    const index_t row = n / w.size(0), feature = n % w.size(0);
    Expected sum = test::product(xs, row * in, ws, feature * in, in) +
                   Expected{bias ? load_float(bias, feature) : 0, 0};
    if (activation != Activation::kNone) {
      // Both activations have slopes below 1.13 and need a handful of operations.
      const double error = 1.13 * sum.tolerance + few_operations_error(std::abs(sum.value));
      sum = {activated(activation, sum.value), error};
    }
    expected.push_back(stored(out_dtype, sum));
  }
  return expected;
}

TEST_P(DenseOps, LinearMatchesTheOracle) {
  struct Size {
    int rows, in, out;
  };
  for (const auto [rows, in, out] :
       {Size{1, 1, 1}, {7, 40, 24}, {33, 130, 65}, {129, 64, 100}, {5, 384, 17}, {0, 8, 8}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << in << " x " << out);
    const Tensor x = test::random_tensor(dtype, {rows, in}, 1);
    const Tensor w = test::random_tensor(dtype, {out, in}, 2, 1 / std::sqrt(in));
    const Tensor bias = test::random_tensor(DType::kF32, {out}, 3);
    const PackedWeight weight = backend->pack_weight(w, dtype, 0);
    const Tensor device_x = upload(*backend, x), device_bias = upload(*backend, bias);
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kSilu}) {
      for (const DType out_dtype : {dtype, DType::kF32}) {
        const Tensor result = result_of(out_dtype, {rows, out}, [&](TensorView y) {
          backend->linear(device_x, weight, device_bias, activation, y, {});
        });
        test::expect_matches(result, linear_oracle(x, w, bias, activation, out_dtype), "out");
      }
    }
    const Tensor result = result_of(dtype, {rows, out}, [&](TensorView y) {
      backend->linear(device_x, weight, {}, Activation::kNone, y, {});
    });
    test::expect_matches(result, linear_oracle(x, w, {}, Activation::kNone, dtype), "no bias");
  }
}

TEST_P(DenseOps, ActivationsAreRightNearAndFarFromZero) {
  const std::vector<float> values = {-1e4f, -90, -20, -3, -1, 0, 0.5f, 1, 2, 3, 20, 90, 1e4f};
  const auto count = static_cast<index_t>(values.size());
  const Tensor x = Tensor::host(dtype, {count, 1});
  for (index_t i = 0; i < count; ++i) store_float(x, i, values[i]);
  const Tensor w = Tensor::host(dtype, {1, 1});
  store_float(w, 0, 1);
  const PackedWeight weight = backend->pack_weight(w, dtype, 0);
  const Tensor device_x = upload(*backend, x);
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    const Tensor result = result_of(DType::kF32, {count, 1}, [&](TensorView y) {
      backend->linear(device_x, weight, {}, activation, y, {});
    });
    test::expect_matches(result, linear_oracle(x, w, {}, activation, DType::kF32), "out");
  }
}

TEST_P(DenseOps, LinearReadsAndWritesColumnSlices) {
  const Tensor x = test::random_tensor(dtype, {33, 80}, 1),
               w = test::random_tensor(dtype, {24, 40}, 2);
  const PackedWeight weight = backend->pack_weight(w, dtype, 0);
  const Tensor device_x = upload(*backend, x);
  const Tensor result = result_of(dtype, {33, 50}, [&](TensorView y) {
    backend->linear(device_x.view().slice(1, 8, 48), weight, {}, Activation::kNone,
                    y.slice(1, 9, 33), {});
  });
  const Tensor columns = Tensor::host(dtype, {33, 40});
  for (index_t i = 0; i < 33 * 40; ++i) {
    store_float(columns, i, load_float(x, i / 40 * 80 + 8 + i % 40));
  }
  const auto inner = linear_oracle(columns, w, {}, Activation::kNone, dtype);
  ExpectedTensor expected(33 * 50);
  for (index_t i = 0; i < 33 * 24; ++i) expected[i / 24 * 50 + 9 + i % 24] = inner[i];
  test::expect_matches(result, expected, "out");
}

// Weights are rounded to the operands' dtype, whatever the file holds.
TEST_P(DenseOps, PackingRoundsWeightsToTheOperandsDType) {
  for (const DType stored_as : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Tensor w = test::random_tensor(stored_as, {17, 40}, 2);
    const Tensor rounded = Tensor::host(dtype, {17, 40});
    for (index_t i = 0; i < w.num_elements(); ++i) store_float(rounded, i, load_float(w, i));
    const PackedWeight weight = backend->pack_weight(w, dtype, 0);
    EXPECT_EQ(weight.out_features, 17);
    EXPECT_EQ(weight.in_features, 40);
    EXPECT_EQ(weight.dtype, dtype);
    const Tensor x = test::random_tensor(dtype, {5, 40}, 3);
    const Tensor device_x = upload(*backend, x);
    const Tensor result = result_of(DType::kF32, {5, 17}, [&](TensorView y) {
      backend->linear(device_x, weight, {}, Activation::kNone, y, {});
    });
    test::expect_matches(result, linear_oracle(x, rounded, {}, Activation::kNone, DType::kF32),
                         "out");
  }
}

TEST_P(DenseOps, NormModulateMatchesTheOracle) {
  for (const int dim : {1, 8, 40, 131, 384}) {
    for (const double offset : {0.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << "dim " << dim << ", mean " << offset);
      const Tensor x = test::random_tensor(DType::kF32, {7, dim}, 1);
      for (index_t i = 0; i < x.num_elements(); ++i) x.as<float>()[i] += static_cast<float>(offset);
      const Tensor shift = test::random_tensor(DType::kF32, {dim}, 2);
      const Tensor scale = test::random_tensor(DType::kF32, {dim}, 3);
      const Tensor device_x = upload(*backend, x), device_shift = upload(*backend, shift);
      const Tensor device_scale = upload(*backend, scale);
      const Tensor result = result_of(dtype, {7, dim}, [&](TensorView y) {
        backend->norm_modulate(device_x, device_shift, device_scale, 1e-6f, y, {});
      });
      ExpectedTensor expected;
      for (int i = 0; i < 7 * dim; ++i) {
        const auto row = test::values_of(x.view().slice(0, i / dim, i / dim + 1));
        double mean = 0, magnitude = 0, variance = 0;
        for (const double value : row) {
          mean += value / dim;
          magnitude += std::abs(value) / dim;
        }
        for (const double value : row) variance += (value - mean) * (value - mean) / dim;
        const double deviation = std::sqrt(variance + 1e-6), gain = 1 + load_float(scale, i % dim);
        const double value = (row[i % dim] - mean) / deviation * gain;
        const double error =
            test::layer_norm_error(dim, magnitude, deviation, std::abs(row[i % dim] - mean)) *
            std::abs(gain);
        expected.push_back(
            stored(dtype, Expected{value, error} + Expected{load_float(shift, i % dim), 0}));
      }
      test::expect_matches(result, expected, "out");
    }
  }
}

TEST_P(DenseOps, GatedAddAddsInPlace) {
  for (const bool gated : {true, false}) {
    for (const DType y_dtype : {dtype, DType::kF32}) {
      const Tensor y = test::random_tensor(y_dtype, {9, 41}, 1);
      const Tensor gate = test::random_tensor(DType::kF32, {41}, 2);
      Tensor residual = test::random_tensor(DType::kF32, {9, 41}, 3);
      ExpectedTensor expected;
      for (index_t i = 0; i < 9 * 41; ++i) {
        const double factor = gated ? load_float(gate, i % 41) : 1;
        expected.push_back(stored(DType::kF32, Expected{load_float(residual, i), 0} +
                                                   factor * Expected{load_float(y, i), 0}));
      }
      const Tensor device_y = upload(*backend, y), device_residual = upload(*backend, residual);
      const Tensor device_gate = gated ? upload(*backend, gate) : Tensor();
      backend->gated_add(device_y, device_gate, device_residual, {});
      test::download(*backend, device_residual, residual);
      test::expect_matches(residual, expected, "residual");
    }
  }
}

TEST_P(DenseOps, ForecastIsALinearCombination) {
  const Layout layout{3, 7, 11};
  const std::vector<float> all = {1, 3, 4.5f};
  Tensor host[3], device[3];
  std::vector<TensorView> terms;
  for (int o = 0; o < 3; ++o) {
    host[o] = test::random_tensor(DType::kF32, layout, 10 + o);
    device[o] = upload(*backend, host[o]);
    terms.push_back(device[o]);
  }
  for (std::size_t orders = 1; orders <= 3; ++orders) {
    const auto coefficients = std::span(all).first(orders);
    const Tensor result = result_of(dtype, layout, [&](TensorView y) {
      backend->forecast(std::span(terms).first(orders), coefficients, y, {});
    });
    ExpectedTensor expected;
    for (index_t i = 0; i < result.num_elements(); ++i) {
      Expected sum;
      for (std::size_t o = 0; o < orders; ++o) {
        sum = sum + static_cast<double>(all[o]) * Expected{load_float(host[o], i), 0};
      }
      expected.push_back(stored(dtype, sum));
    }
    test::expect_matches(result, expected, "out");
  }
}

// F = 8, 10, 16 at steps 7, 13, 19: first differences 1/3 and 1, second 1/9; 16, 19, 19.5 ahead.
TEST_P(DenseOps, DifferencesReproduceTheWorkedNumbers) {
  const Layout layout{5, 3};
  Tensor terms[3];
  std::vector<TensorView> views;
  for (Tensor& term : terms) {
    term = upload(*backend, test::canary_tensor(DType::kF32, layout));
    views.push_back(term);
  }
  const auto push = [&](float value, int order) {
    const Tensor host = Tensor::host(dtype, layout);
    for (index_t i = 0; i < host.num_elements(); ++i) store_float(host, i, value);
    const Tensor device = upload(*backend, host);
    backend->push_differences(device, order, 6, views, {});
  };
  const auto expect_terms = [&](std::vector<double> wanted) {
    for (std::size_t o = 0; o < 3; ++o) {
      Tensor host = Tensor::host(DType::kF32, layout);
      test::download(*backend, terms[o], host);
      ExpectedTensor expected(static_cast<std::size_t>(layout.num_elements()));
      for (auto& element : expected) {
        if (o < wanted.size()) element = Expected{wanted[o], few_operations_error(wanted[o])};
      }
      test::expect_matches(host, expected, "terms");
    }
  };
  push(8, 0);
  expect_terms({8});
  push(10, 1);
  expect_terms({10, 1.0 / 3});
  push(16, 2);
  expect_terms({16, 1, 1.0 / 9});

  for (const auto& [coefficients, wanted] :
       {std::pair<std::vector<float>, double>{{1}, 16}, {{1, 3}, 19}, {{1, 3, 4.5f}, 19.5}}) {
    const Tensor result = result_of(DType::kF32, layout, [&](TensorView y) {
      backend->forecast(std::span(views).first(coefficients.size()), coefficients, y, {});
    });
    const ExpectedTensor expected(15, Expected{wanted, few_operations_error(2 * wanted)});
    test::expect_matches(result, expected, "forecast");
  }
}

TEST_P(DenseOps, CopyMovesBytes) {
  const Tensor x = test::random_tensor(dtype, {3, 5}, 1);
  const Tensor device = upload(*backend, x), other = backend->allocate(dtype, {3, 5});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(device.view().data) % 64, 0u);
  backend->copy(device, other, {});
  Tensor back = Tensor::host(dtype, {3, 5});
  test::download(*backend, other, back);
  EXPECT_TRUE(test::same_bits(back, x));
}

FO_TEST_EVERY_BACKEND(DenseOps);

}  // namespace
}  // namespace flashomni
