// gemm_case.h -- calls of gemm_q(), gemm_o_update() and gemm_o_dispatch() and their oracles.
#pragma once

#include "flashomni/gemm.h"

#include "backends.h"
#include "case.h"
#include "reference.h"

namespace flashomni::test {

// A stretch of a joint sequence that is projected by one weight.
struct TokenRange {
  int first = 0, count = 0;
};

// Symbols for projections: heads of query blocks; the kv axis is not looked at.
inline Sparsity projection_sparsity(int batch, int num_heads, const Axis& axis, Pattern pattern,
                                    unsigned seed = 1) {
  return make_sparsity(batch, num_heads, axis, {1, 1}, pattern, seed);
}

inline SymbolWords upload_words(Backend& backend, const SparseSymbols& symbols) {
  SymbolWords words =
      make_symbol_words(backend, symbols.q_grid(), symbols.kv_grid(), symbols.num_heads());
  upload_symbols(backend, symbols, words);
  return words;
}

// From symbols on the host, or uploaded first.
inline GemmPlan make_plan(Backend& backend, const Sparsity& sparsity, TokenRange range,
                          const Sparsity* previous = nullptr, bool from_words = false) {
  GemmPlan plan;
  if (from_words) {
    const SymbolWords words = upload_words(backend, sparsity.symbols());
    const SymbolWords before =
        previous ? upload_words(backend, previous->symbols()) : SymbolWords();
    backend.build_gemm_plan_from(words, range.first, range.count, previous ? &before : nullptr,
                                 plan, {});
    return plan;
  }
  const SparseSymbols symbols = sparsity.symbols();
  const SparseSymbols before = previous ? previous->symbols() : SparseSymbols();
  backend.build_gemm_plan(symbols, range.first, range.count, previous ? &before : nullptr, plan,
                          {});
  return plan;
}

struct GemmQCase {
  Sparsity sparsity;
  TokenRange range;
  int head_dim = 0;
  Tensor x, weight;    // [batch, rows, in], [num_heads * head_dim, in], the operands' dtype
  Tensor bias;         // f32 or absent
  Tensor norm_weight;  // f32 or absent
  Tensor cos, sin;     // f32 or absent
  float eps = 1e-6f;
  Tensor out;               // a canary before the call
  bool from_words = false;  // how the plan is built
};

inline GemmQCase random_gemm_q(const Sparsity& sparsity, TokenRange range, int in_features,
                               int head_dim, DType dtype, unsigned seed = 1) {
  const index_t batch = sparsity.batch, out_features = sparsity.num_heads * head_dim;
  GemmQCase c{sparsity, range, head_dim, {}, {}, {}, {}, {}, {}, 1e-6f, {}, false};
  c.x = random_tensor(dtype, {batch, range.count, in_features}, seed);
  c.weight = random_tensor(dtype, {out_features, in_features}, seed + 1,
                           1 / std::sqrt(static_cast<double>(in_features)));
  c.bias = random_tensor(DType::kF32, {out_features}, seed + 2);
  c.out = canary_tensor(dtype, {batch, range.count, out_features});
  return c;
}

inline void add_norm_and_rope(GemmQCase& c, unsigned seed = 7) {
  c.norm_weight = random_tensor(DType::kF32, {c.head_dim}, seed);
  c.cos = random_tensor(DType::kF32, {c.range.count, c.head_dim / 2}, seed + 1);
  c.sin = Tensor::host(DType::kF32, {c.range.count, c.head_dim / 2});
  for (index_t i = 0; i < c.cos.num_elements(); ++i) {
    const float angle = load_float(c.cos, i);
    store_float(c.cos, i, std::cos(angle));
    store_float(c.sin, i, std::sin(angle));
  }
}

inline Tensor upload_if(Backend& backend, const Tensor& host) {
  return host ? upload(backend, host) : Tensor();
}

inline void run(Backend& backend, GemmQCase& c) {
  const GemmPlan plan = make_plan(backend, c.sparsity, c.range, nullptr, c.from_words);
  const PackedWeight weight = backend.pack_weight(c.weight, c.weight.dtype(), c.head_dim);
  const Tensor x = upload(backend, c.x), bias = upload_if(backend, c.bias);
  const Tensor norm = upload_if(backend, c.norm_weight), out = upload(backend, c.out);
  const Tensor cos = upload_if(backend, c.cos), sin = upload_if(backend, c.sin);
  gemm_q(backend, plan, x, weight, bias, {norm, c.eps, cos, sin}, out);
  download(backend, out, c.out);
}

// All on the x of the first, which the others are given.
inline void run_together(Backend& backend, std::span<GemmQCase> cases) {
  const Tensor x = upload(backend, cases[0].x);
  std::vector<GemmPlan> plans;
  std::vector<PackedWeight> weights;
  std::vector<std::array<Tensor, 5>> operands;
  for (GemmQCase& c : cases) {
    c.x = cases[0].x.clone();
    plans.push_back(make_plan(backend, c.sparsity, c.range, nullptr, c.from_words));
    weights.push_back(backend.pack_weight(c.weight, c.weight.dtype(), c.head_dim));
    operands.push_back({upload_if(backend, c.bias), upload_if(backend, c.norm_weight),
                        upload_if(backend, c.cos), upload_if(backend, c.sin),
                        upload(backend, c.out)});
  }
  std::vector<InputProjection> projections;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& [bias, norm, cos, sin, out] = operands[i];
    projections.push_back({&plans[i], &weights[i], bias, {norm, cases[i].eps, cos, sin}, out});
  }
  backend.gemm_qkv(x, projections, {});
  for (std::size_t i = 0; i < cases.size(); ++i) download(backend, operands[i][4], cases[i].out);
}

// x W^T + bias over columns [begin, end) of one row, with its rounding error.
inline Expected product(const std::vector<double>& x, std::size_t x_row,
                        const std::vector<double>& weight, std::size_t weight_row, int length) {
  double sum = 0, magnitude = 0;
  for (int i = 0; i < length; ++i) {
    sum += x[x_row + i] * weight[weight_row + i];
    magnitude += std::abs(x[x_row + i] * weight[weight_row + i]);
  }
  return {sum, sum_error(length + 1, magnitude)};
}

inline Expected operator+(Expected a, Expected b) {
  const double sum = a.value + b.value;
  return {sum,
          a.tolerance + b.tolerance + few_operations_error(std::abs(a.value) + std::abs(b.value))};
}

inline Expected operator*(double factor, Expected a) {
  return {factor * a.value,
          std::abs(factor) * a.tolerance + few_operations_error(std::abs(factor * a.value))};
}

inline Expected stored(DType dtype, Expected a) {
  return {a.value, a.tolerance + store_error(dtype, std::abs(a.value) + a.tolerance)};
}

// RMS norm and rotation of one tile, carrying the errors along.
inline void norm_and_rotate_oracle(const GemmQCase& c, int row, std::vector<Expected>& tile) {
  const int dim = static_cast<int>(tile.size());
  if (c.norm_weight) {
    double squares = 0, error = 0;
    for (const Expected& x : tile) {
      squares += x.value * x.value;
      error += 2 * std::abs(x.value) * x.tolerance + x.tolerance * x.tolerance;
    }
    const double rms = std::sqrt(squares / dim + c.eps);
    // d(1 / rms) / (1 / rms) = -1/2 d(squares) / (squares + dim eps)
    const double relative = 0.5 * (error + sum_error(dim, squares)) / (rms * rms * dim);
    for (int d = 0; d < dim; ++d) {
      const double factor = load_float(c.norm_weight, d) / rms;
      tile[d] = factor * tile[d];
      tile[d].tolerance += relative * std::abs(tile[d].value);
    }
  }
  for (int i = 0; c.cos && i < dim / 2; ++i) {
    const double cos = load_float(c.cos, static_cast<index_t>(row) * (dim / 2) + i);
    const double sin = load_float(c.sin, static_cast<index_t>(row) * (dim / 2) + i);
    const Expected even = tile[2 * i], odd = tile[2 * i + 1];
    tile[2 * i] = cos * even + -sin * odd;
    tile[2 * i + 1] = sin * even + cos * odd;
  }
}

inline void expect_correct(const GemmQCase& c) {
  const auto x = values_of(c.x), weight = values_of(c.weight);
  const int in = static_cast<int>(c.x.size(2)), heads = c.sparsity.num_heads;
  ExpectedTensor expected(static_cast<std::size_t>(c.out.num_elements()));
  for (int n = 0; n < c.sparsity.batch * c.range.count * heads; ++n) {
    const int head = n % heads, row = n / heads % c.range.count, item = n / heads / c.range.count;
    if (!is_live(c.sparsity, item, head, c.range.first + row)) continue;
    std::vector<Expected> tile;
    for (int d = 0; d < c.head_dim; ++d) {
      const int feature = head * c.head_dim + d;
      const double bias = c.bias ? load_float(c.bias, feature) : 0;
      tile.push_back(product(x, static_cast<std::size_t>(n / heads) * in, weight,
                             static_cast<std::size_t>(feature) * in, in) +
                     Expected{bias, 0});
    }
    norm_and_rotate_oracle(c, row, tile);
    for (int d = 0; d < c.head_dim; ++d) {
      expected[static_cast<std::size_t>(n) * c.head_dim + d] = stored(c.x.dtype(), tile[d]);
    }
  }
  expect_matches(c.out, expected, "out");
}

}  // namespace flashomni::test
