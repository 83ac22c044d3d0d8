// attention_case.h -- one call of attention(), with room for its results.
#pragma once

#include "flashomni/attention.h"

#include "backends.h"
#include "case.h"
#include "reference.h"

namespace flashomni::test {

struct AttentionCase {
  Sparsity sparsity;
  float scale = 0;
  Tensor q, k, v;   // contiguous, token-major
  Tensor out, lse;  // canaries before the call
};

struct AttentionShape {
  int batch = 1, num_heads = 2, num_kv_heads = 2, head_dim = 64;
  Axis q{100}, kv{100};
};

inline AttentionCase random_attention(const AttentionShape& shape, DType dtype, Pattern pattern,
                                      unsigned seed = 1) {
  const index_t batch = shape.batch, heads = shape.num_heads, dim = shape.head_dim;
  const Layout q{batch, shape.q.tokens, heads, dim};
  const Layout kv{batch, shape.kv.tokens, shape.num_kv_heads, dim};
  return {make_sparsity(shape.batch, shape.num_heads, shape.q, shape.kv, pattern, seed),
          1 / std::sqrt(static_cast<float>(dim)),
          random_tensor(dtype, q, seed),
          random_tensor(dtype, kv, seed + 1),
          random_tensor(dtype, kv, seed + 2),
          canary_tensor(dtype, q),
          canary_tensor(DType::kF32, {batch, heads, shape.q.tokens})};
}

// Fills out and lse by the checked operator. Throws what it throws.
inline void run(Backend& backend, AttentionCase& c) {
  AttentionPlan plan;
  backend.build_attention_plan(c.sparsity.symbols(), plan, {});
  const Tensor q = upload(backend, c.q), k = upload(backend, c.k), v = upload(backend, c.v);
  const Tensor out = upload(backend, c.out), lse = upload(backend, c.lse);
  attention(backend, plan, q, k, v, c.scale, out, lse);
  download(backend, out, c.out);
  download(backend, lse, c.lse);
}

inline void expect_correct(const AttentionCase& c) {
  const ExpectedAttention expected = attention_oracle(c.sparsity, c.q, c.k, c.v, c.scale);
  expect_matches(c.out, expected.out, "out");
  expect_matches(c.lse, expected.lse, "lse");
}

}  // namespace flashomni::test
