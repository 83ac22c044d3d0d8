// What attention.h promises, on every backend: what is read and written, and relations of results.
#include <array>

#include "attention_case.h"

namespace flashomni {
namespace {

using test::AttentionCase;
using test::Pattern;

class AttentionProperties : public test::BackendTest {
 protected:
  // 150 = 4 blocks of 32 and a ragged fifth; two items, the second one short.
  AttentionCase ragged_case(Pattern pattern) {
    return test::random_attention({2, 3, 3, 24, {150, 32, {150, 70}}, {150, 32, {150, 90}}}, dtype,
                                  pattern);
  }
};

// The comparison with the oracle sees canaries wherever nothing may be written; here all of it.
TEST_P(AttentionProperties, WritesNothingWhereEverythingIsCached) {
  auto c = ragged_case(Pattern::kAllCached);
  const Tensor out = c.out.clone(), lse = c.lse.clone();
  test::run(*backend, c);
  EXPECT_TRUE(test::same_bits(c.out, out));
  EXPECT_TRUE(test::same_bits(c.lse, lse));
}

TEST_P(AttentionProperties, ReadsNoCachedQueryNoSkippedKeyAndNothingPastALength) {
  auto clean = ragged_case(Pattern::kAllLive);
  // Query block 1 and kv blocks 0 and 3 are left out by every head.
  for (int row = 0; row < 2 * 3 * 5; ++row) {
    if (row % 5 == 1) clean.sparsity.cache[row] = 0;
    clean.sparsity.skip[row * 5] = clean.sparsity.skip[row * 5 + 3] = 0;
  }
  AttentionCase poisoned{clean.sparsity,  clean.scale,       clean.q.clone(),  clean.k.clone(),
                         clean.v.clone(), clean.out.clone(), clean.lse.clone()};
  test::poison(poisoned.q.view().slice(1, 32, 64));
  test::poison(poisoned.q.view().slice(0, 1, 2).slice(1, 70, 150));
  for (const TensorView x : {poisoned.k.view(), poisoned.v.view()}) {
    test::poison(x.slice(1, 0, 32));
    test::poison(x.slice(1, 96, 128));
    test::poison(x.slice(0, 1, 2).slice(1, 90, 150));
  }
  test::run(*backend, clean);
  test::run(*backend, poisoned);
  EXPECT_TRUE(test::same_bits(poisoned.out, clean.out));
  EXPECT_TRUE(test::same_bits(poisoned.lse, clean.lse));
  test::expect_correct(clean);
}

TEST_P(AttentionProperties, AllLiveSymbolsEqualNoSymbolsBitForBit) {
  auto c = ragged_case(Pattern::kAllLive);
  test::run(*backend, c);

  AttentionPlan plan;
  const auto q_grid = c.sparsity.q.grid(2), kv_grid = c.sparsity.kv.grid(2);
  backend->build_attention_plan(SparseSymbols(q_grid, kv_grid, 3), plan, {});
  const Tensor q = test::upload(*backend, c.q), k = test::upload(*backend, c.k);
  const Tensor v = test::upload(*backend, c.v);
  Tensor out = test::canary_tensor(dtype, {2, 150, 3, 24});
  const Tensor device_out = test::upload(*backend, out);
  attention(*backend, plan, q, k, v, c.scale, device_out);
  test::download(*backend, device_out, out);
  EXPECT_TRUE(test::same_bits(out, c.out));
}

TEST_P(AttentionProperties, SkippingABlockEqualsAKeyThatCannotBeSeen) {
  // A key of -huge in a dimension where every query is 1 has a logit of -inf in effect.
  auto masked = test::random_attention({1, 1, 1, 24, {70, 32}, {96, 32}}, dtype, Pattern::kAllLive);
  for (index_t t = 0; t < 70; ++t) store_float(masked.q, t * 24, 1);
  for (index_t t = 0; t < 96; ++t) store_float(masked.k, t * 24, 0);
  AttentionCase skipped{masked.sparsity,  masked.scale,       masked.q.clone(),  masked.k.clone(),
                        masked.v.clone(), masked.out.clone(), masked.lse.clone()};
  for (index_t t = 32; t < 64; ++t) store_float(masked.k, t * 24, -60000);
  for (int q_block = 0; q_block < 3; ++q_block) skipped.sparsity.skip[q_block * 3 + 1] = 0;
  test::run(*backend, masked);
  test::run(*backend, skipped);
  const auto expected =
      test::attention_oracle(skipped.sparsity, skipped.q, skipped.k, skipped.v, skipped.scale);
  test::expect_matches(masked.out, expected.out, "masked out");
  test::expect_matches(skipped.out, expected.out, "skipped out");
}

TEST_P(AttentionProperties, PermutingHeadsPermutesTheOutput) {
  constexpr std::array<int, 3> kOrder = {2, 0, 1};
  auto c = ragged_case(Pattern::kRandom);
  auto permuted = ragged_case(Pattern::kRandom);
  const auto permute_heads = [&](ConstTensorView from, TensorView to) {
    const index_t dim = from.size(3), tokens = from.size(0) * from.size(1);
    for (index_t t = 0; t < tokens; ++t) {
      for (int head = 0; head < 3; ++head) {
        for (index_t d = 0; d < dim; ++d) {
          store_float(to, (t * 3 + head) * dim + d,
                      load_float(from, (t * 3 + kOrder[head]) * dim + d));
        }
      }
    }
  };
  permute_heads(c.q, permuted.q);
  permute_heads(c.k, permuted.k);
  permute_heads(c.v, permuted.v);
  for (int row = 0; row < 2 * 3 * 5; ++row) {
    const int from = (row / 15 * 3 + kOrder[row / 5 % 3]) * 5 + row % 5;
    permuted.sparsity.cache[row] = c.sparsity.cache[from];
    std::copy_n(c.sparsity.skip.begin() + from * 5, 5, permuted.sparsity.skip.begin() + row * 5);
  }
  test::run(*backend, c);
  test::run(*backend, permuted);
  const Tensor expected = test::canary_tensor(dtype, {2, 150, 3, 24});
  for (index_t t = 0; t < 2 * 150 * 3; ++t) {
    const index_t from = t / 3 * 3 + kOrder[t % 3];
    std::memcpy(expected.as<char>() + t * 24 * size_in_bytes(dtype),
                c.out.as<char>() + from * 24 * size_in_bytes(dtype), 24 * size_in_bytes(dtype));
  }
  EXPECT_TRUE(test::same_bits(permuted.out, expected));
}

TEST_P(AttentionProperties, InputsAndOutputMayBeStridedViews) {
  auto c = test::random_attention({2, 3, 3, 24, {70, 32}, {70, 32}}, dtype, Pattern::kRandom);
  const auto token_major_in_a_wider_buffer = [](TensorView buffer) {
    return buffer.slice(2, 2, 5).slice(3, 8, 32);  // [2, 70, 6, 40]
  };
  const auto at_an_odd_address = [](TensorView buffer) {
    return buffer.slice(2, 2, 5).slice(3, 7, 31);  // [2, 70, 6, 41]
  };
  const auto head_major = [](TensorView buffer) {  // [2, 3, 70, 24]
    std::swap(buffer.layout.sizes[1], buffer.layout.sizes[2]);
    std::swap(buffer.layout.strides[1], buffer.layout.strides[2]);
    return buffer;
  };
  const auto run_placed = [&](Layout buffer_layout, auto view_of) {
    const auto place = [&](ConstTensorView x) {
      const Tensor host = test::canary_tensor(dtype, buffer_layout);
      const TensorView view = view_of(host.view());
      for (index_t i = 0; i < x.layout.num_elements(); ++i) {
        const index_t d = i % 24, head = i / 24 % 3, t = i / 72 % 70, item = i / 5040;
        const index_t offset = item * view.stride(0) + t * view.stride(1) + head * view.stride(2);
        std::memcpy(view.as<char>() + (offset + d) * size_in_bytes(dtype),
                    x.as<char>() + i * size_in_bytes(dtype), size_in_bytes(dtype));
      }
      return test::upload(*backend, host);
    };
    const Tensor q = place(c.q), k = place(c.k), v = place(c.v);
    const Tensor out = place(test::canary_tensor(dtype, {2, 70, 3, 24}));
    AttentionPlan plan;
    backend->build_attention_plan(c.sparsity.symbols(), plan, {});
    attention(*backend, plan, view_of(q.view()), view_of(k.view()), view_of(v.view()), c.scale,
              view_of(out.view()));
    test::run(*backend, c);
    const Tensor expected = place(c.out);
    Tensor host = Tensor::host(dtype, buffer_layout), wanted = Tensor::host(dtype, buffer_layout);
    test::download(*backend, out, host);
    test::download(*backend, expected, wanted);
    EXPECT_TRUE(test::same_bits(host, wanted));
  };
  run_placed({2, 70, 6, 40}, token_major_in_a_wider_buffer);
  run_placed({2, 70, 6, 41}, at_an_odd_address);
  run_placed({2, 3, 70, 24}, head_major);
}

// The worked example of the specification: v, scale 1/2, symbols of case A.
TEST_P(AttentionProperties, ReproducesTheWorkedExample) {
  test::Sparsity sparsity{1, 2, {26, 4}, {26, 4}, {}, {}};
  for (const char bit : std::string("11111001110111")) sparsity.cache.push_back(bit == '1');
  for (const char* row :
       {"1111111", "1111111", "1111111", "1111111", "1111111", "0000000", "0000000", "1111111",
        "1111111", "1111111", "0000000", "1111011", "1110111", "1101101"}) {
    for (int j = 0; j < 7; ++j) sparsity.skip.push_back(row[j] == '1');
  }
  // The example has a head_dim of 4; four zeros more change no logit.
  const Layout layout{1, 26, 2, 8};
  AttentionCase c{sparsity,
                  0.5f,
                  Tensor::host_zeros(dtype, layout),
                  Tensor::host_zeros(dtype, layout),
                  Tensor::host_zeros(dtype, layout),
                  test::canary_tensor(dtype, layout),
                  test::canary_tensor(DType::kF32, {1, 2, 26})};
  for (int i = 0; i < 26 * 2 * 4; ++i) {
    const int d = i % 4, h = i / 4 % 2, t = i / 8, b = t / 4;
    const int q_phase = (3 * b * b + 5 * h + 7 * d * b + 2 * d + 4 * h * d * b) % 13;
    const int k_phase = (5 * b * b + 2 * h + 3 * d * b + 4 * d + 6 * h * b) % 11;
    const index_t offset = (t * 2 + h) * 8 + d;
    store_float(c.q, offset, (q_phase - 6) / 4.0f + ((t + d) % 3 - 1) / 8.0f);
    store_float(c.k, offset, (k_phase - 5) / 4.0f + ((t + 2 * d) % 3 - 1) / 8.0f);
    store_float(c.v, offset, ((3 * t + h + 2 * d) % 7 - 3) / 4.0f);
  }
  test::run(*backend, c);
  test::expect_correct(c);

  const auto expect_row = [&](int head, int token, std::array<double, 4> published) {
    for (int d = 0; d < 4; ++d) {
      EXPECT_NEAR(load_float(c.out, (token * 2 + head) * 8 + d), published[d],
                  test::published_digits_error(4, dtype));
    }
  };
  expect_row(0, 8, {0.0399, -0.0335, -0.0473, 0.0408});
  expect_row(1, 25, {0.0668, -0.0421, 0.0511, -0.0891});
  expect_row(0, 0, {-0.0648, 0.0335, -0.0147, 0.0349});
}

TEST_P(AttentionProperties, OneBackendServesPlansOfManySizesInTurn) {
  for (const int tokens : {300, 1, 129, 64}) {
    auto c = test::random_attention({1, 2, 2, 24, {tokens}, {tokens}}, dtype, Pattern::kRandom);
    test::run(*backend, c);
    test::expect_correct(c);
  }
}

// A broken row stays alone: its neighbours in a block, and the same row of other heads, are whole.
TEST_P(AttentionProperties, ANanInAQueryStaysInItsRow) {
  auto c = ragged_case(Pattern::kRandom);
  constexpr index_t kRow = 40 * 3 + 1;  // item 0, token 40, head 1
  for (int block = 0; block < 5; ++block) c.sparsity.cache[1 * 5 + block] = 1;
  test::run(*backend, c);
  const Tensor clean = c.out.clone();
  store_float(c.q, kRow * 24 + 5, std::nanf(""));
  test::fill_canary(c.out);
  test::run(*backend, c);
  for (index_t i = 0; i < c.out.num_elements(); ++i) {
    if (i / 24 == kRow) continue;
    ASSERT_EQ(test::bits_of(c.out, i), test::bits_of(clean, i)) << "element " << i;
  }
}

FO_TEST_EVERY_BACKEND(AttentionProperties);

}  // namespace
}  // namespace flashomni
