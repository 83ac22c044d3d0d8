// reuse_case.h -- attention() that also writes the rows of cached blocks, and its oracle.
#pragma once

#include <vector>

#include "attention_case.h"

namespace flashomni::test {

struct ReuseCase {
  AttentionCase attention;
  std::vector<Tensor> terms;  // of out's shape
  std::vector<float> coefficients;
};

inline ReuseCase random_reuse(const AttentionShape& shape, DType dtype, Pattern pattern,
                              int num_terms, DType term_dtype) {
  ReuseCase c{random_attention(shape, dtype, pattern), {}, {}};
  for (int o = 0; o < num_terms; ++o) {
    c.terms.push_back(random_tensor(term_dtype, c.attention.q.view().layout, 40 + o));
    c.coefficients.push_back(o == 0 ? 1.0f : 1.5f / static_cast<float>(o));
  }
  return c;
}

// Terms of the backend's device as a caller holds them.
struct DeviceReuse {
  std::vector<Tensor> terms;
  std::vector<ConstTensorView> views;
  std::vector<float> coefficients;

  DeviceReuse(Backend& backend, const ReuseCase& c) : coefficients(c.coefficients) {
    for (const Tensor& term : c.terms) {
      terms.push_back(upload(backend, term));
      views.push_back(terms.back());
    }
  }
  AttentionReuse view() const { return {views, coefficients}; }
};

inline void run(Backend& backend, const AttentionPlan& plan, ReuseCase& reuse) {
  AttentionCase& c = reuse.attention;
  const Tensor q = upload(backend, c.q), k = upload(backend, c.k), v = upload(backend, c.v);
  const Tensor out = upload(backend, c.out), lse = upload(backend, c.lse);
  const DeviceReuse terms(backend, reuse);
  attention(backend, plan, q, k, v, c.scale, out, lse, {}, terms.view());
  download(backend, out, c.out);
  download(backend, lse, c.lse);
}
inline void run(Backend& backend, ReuseCase& reuse) {
  AttentionPlan plan;
  backend.build_attention_plan(reuse.attention.sparsity.symbols(), plan, {});
  run(backend, plan, reuse);
}

// Cached rows within an item's length hold the forecast; what lies past it, and lse of cached rows,
// is as it was.
inline ExpectedAttention reuse_oracle(const ReuseCase& reuse) {
  const AttentionCase& c = reuse.attention;
  const Sparsity& s = c.sparsity;
  ExpectedAttention expected = attention_oracle(s, c.q, c.k, c.v, c.scale);
  const index_t dim = c.q.size(3), heads = s.num_heads;
  for (index_t i = 0; i < c.out.num_elements(); ++i) {
    const int head = static_cast<int>(i / dim % heads);
    const int token = static_cast<int>(i / dim / heads % s.q.tokens);
    const int item = static_cast<int>(i / dim / heads / s.q.tokens);
    if (token >= s.q.length(item) || is_live(s, item, head, token)) continue;
    double sum = 0, magnitude = 0;
    for (std::size_t o = 0; o < reuse.terms.size(); ++o) {
      const double term =
          static_cast<double>(reuse.coefficients[o]) * load_float(reuse.terms[o], i);
      sum += term;
      magnitude += std::abs(term);
    }
    const double error = few_operations_error(magnitude);
    expected.out[i] = Expected{sum, error + store_error(c.out.dtype(), std::abs(sum) + error)};
  }
  return expected;
}

inline void expect_correct(const ReuseCase& reuse) {
  const ExpectedAttention expected = reuse_oracle(reuse);
  expect_matches(reuse.attention.out, expected.out, "out");
  expect_matches(reuse.attention.lse, expected.lse, "lse");
}

}  // namespace flashomni::test
