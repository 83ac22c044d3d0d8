// Host backends touch nothing outside of their arguments: every tensor ends where an unmapped page
// begins, or begins where one ends. Callers' arrays are not padded like the library's own.
#include <sys/mman.h>
#include <unistd.h>

#include "gemm_case.h"

namespace flashomni {
namespace {

using test::Pattern;

enum class Edge { kEnd, kStart };

// A copy of a contiguous host tensor that leans against an unmapped page.
Tensor guarded(ConstTensorView x, Edge edge) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto bytes = static_cast<std::size_t>(x.layout.num_elements() * size_in_bytes(x.dtype));
  const std::size_t inner = (bytes + page - 1) / page * page;
  void* map = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* first = static_cast<char*>(map) + page;
  EXPECT_EQ(mprotect(first, inner, PROT_READ | PROT_WRITE), 0);
  char* data = edge == Edge::kStart ? first : first + inner - bytes;
  std::memcpy(data, x.data, bytes);
  // The mapping lives until the test's process ends; these are small.
  return Tensor(TensorView(data, x.dtype, x.layout), nullptr, nullptr);
}

class Guarded : public test::BackendTest {
 protected:
  void SetUp() override {
    if (backend->device().type != DeviceType::kCpu) GTEST_SKIP() << "not host memory";
  }
  Tensor random(DType type, Layout layout, unsigned seed) {
    return guarded(test::random_tensor(type, layout, seed), edge_);
  }
  Tensor canary(DType type, Layout layout) {
    return guarded(test::canary_tensor(type, layout), edge_);
  }
  template <typename Body>
  void at_both_edges(Body&& body) {
    for (const Edge edge : {Edge::kEnd, Edge::kStart}) {
      edge_ = edge;
      body();
    }
  }
  Edge edge_ = Edge::kEnd;
};

TEST_P(Guarded, Attention) {
  at_both_edges([&] {
    for (const auto [tokens, keys] : {std::pair{1, 1}, {37, 5}, {67, 131}}) {
      for (const index_t dim : {8, 24, 64}) {
        const auto sparsity = test::make_sparsity(1, 1, {tokens}, {keys, 32}, Pattern::kAllLive);
        AttentionPlan plan;
        backend->build_attention_plan(sparsity.symbols(), plan, {});
        const Tensor q = random(dtype, {1, tokens, 1, dim}, 1),
                     out = canary(dtype, q.view().layout);
        const Tensor k = random(dtype, {1, keys, 1, dim}, 2);
        const Tensor v = random(dtype, {1, keys, 1, dim}, 3);
        const Tensor lse = canary(DType::kF32, {1, 1, tokens});
        backend->attention(plan, q, k, v, 0.5f, out, lse, {});
        const auto expected = test::attention_oracle(sparsity, q, k, v, 0.5);
        test::expect_matches(out, expected.out, "out");
        test::expect_matches(lse, expected.lse, "lse");
      }
    }
  });
}

TEST_P(Guarded, Projections) {
  at_both_edges([&] {
    for (const index_t in : {8, 13, 40, 131}) {
      const auto sparsity = test::projection_sparsity(1, 1, {37, 32}, Pattern::kAllLive);
      const GemmPlan plan = test::make_plan(*backend, sparsity, {0, 37});
      const Tensor x = random(dtype, {1, 37, in}, 1), w = random(dtype, {24, in}, 2);
      const Tensor bias = random(DType::kF32, {24}, 3), norm = random(DType::kF32, {24}, 4);
      const Tensor cos = random(DType::kF32, {37, 12}, 5), sin = random(DType::kF32, {37, 12}, 6);
      const PackedWeight weight = backend->pack_weight(w, dtype, 24);
      const Tensor q = canary(dtype, {1, 37, 24});
      backend->gemm_q(plan, x, weight, bias, {norm, 1e-6f, cos, sin}, q, {});
      const Tensor y = canary(dtype, {37, 24});
      backend->linear(x.view().reshape({37, in}), weight, bias, Activation::kSilu, y, {});
      for (index_t i = 0; i < y.num_elements(); ++i) {
        EXPECT_FALSE(std::isnan(load_float(q, i)) || std::isnan(load_float(y, i))) << i;
      }
    }
  });
}

TEST_P(Guarded, OutputProjections) {
  at_both_edges([&] {
    for (const index_t mlp_dim : {3, 16}) {
      for (const index_t features : {1, 13, 64, 70}) {
        auto sparsity = test::projection_sparsity(1, 2, {37, 32}, Pattern::kAllLive);
        sparsity.cache[0] = 0;
        const GemmPlan plan = test::make_plan(*backend, sparsity, {0, 37}, &sparsity);
        const Tensor o = random(dtype, {1, 37, 16}, 1), mlp = random(dtype, {1, 37, mlp_dim}, 2);
        const Tensor w = random(dtype, {features, 16 + mlp_dim}, 3);
        const Tensor bias = random(DType::kF32, {features}, 4);
        const Tensor out = canary(dtype, {1, 37, features});
        const Tensor old = random(DType::kF32, {1, 37, features}, 5);
        const Tensor terms[2] = {guarded(old, edge_), guarded(old, edge_)};
        const Tensor valid_order = guarded(Tensor::host_zeros(DType::kU8, {1, 2}), edge_);
        const PackedWeight weight = backend->pack_weight(w, dtype, 0);
        const BiasCacheView cache{1, {terms[0], terms[1]}, valid_order};
        backend->gemm_o_update(plan, {&weight, bias, o, mlp, out}, 2, cache, {});
        const std::vector<float> coefficients = {1, 2};
        backend->gemm_o_dispatch(plan, {&weight, {}, o, mlp, out}, coefficients, cache, {});
        for (index_t i = 0; i < out.num_elements(); ++i) {
          EXPECT_FALSE(std::isnan(load_float(out, i))) << i;
        }
      }
    }
  });
}

TEST_P(Guarded, ElementwiseAndScores) {
  at_both_edges([&] {
    for (const index_t dim : {1, 13, 40}) {
      const Tensor x = random(DType::kF32, {3, dim}, 1), out = canary(dtype, {3, dim});
      const Tensor shift = random(DType::kF32, {dim}, 2), scale = random(DType::kF32, {dim}, 3);
      backend->norm_modulate(x, shift, scale, 1e-6f, out, {});
      backend->gated_add(out, scale, x, {});
      const Tensor term = random(DType::kF32, {3, dim}, 4);
      const std::vector<TensorView> terms = {x, term};
      const std::vector<float> coefficients = {1, 2};
      backend->push_differences(out, 1, 3, terms, {});
      backend->forecast(terms, coefficients, out, {});
      for (index_t i = 0; i < out.num_elements(); ++i) {
        EXPECT_FALSE(std::isnan(load_float(out, i))) << i;
      }
    }
    const Tensor q = random(dtype, {1, 37, 2, 24}, 1), k = random(dtype, {1, 29, 1, 24}, 2);
    BlockScores scores;
    backend->block_scores(q, k, test::Axis{37, 16}.grid(1), test::Axis{29, 16}.grid(1),
                          {0, true, true, true}, scores, {});
    for (const float logit : scores.logits) EXPECT_FALSE(std::isnan(logit));
  });
}

FO_TEST_EVERY_BACKEND(Guarded);

}  // namespace
}  // namespace flashomni
