// Attention on a GPU, against fp64.
#include "gpu.h"
#include "reuse_case.h"

namespace flashomni {
namespace {

using test::AttentionCase;
using test::AttentionShape;
using test::Axis;
using test::Pattern;

class GpuAttention : public test::GpuTest {
 protected:
  void expect_works(const AttentionShape& shape, Pattern pattern, DType dtype = DType::kBF16) {
    SCOPED_TRACE(testing::Message()
                 << dtype_name(dtype) << ", batch " << shape.batch << ", heads " << shape.num_heads
                 << "/" << shape.num_kv_heads << ", head_dim " << shape.head_dim << ", tokens "
                 << shape.q.tokens << " by " << shape.q.block << ", keys " << shape.kv.tokens
                 << " by " << shape.kv.block << ", pattern " << static_cast<int>(pattern));
    AttentionCase c = test::random_attention(shape, dtype, pattern);
    run(*backend, c);
    test::expect_correct(c);
  }
};

TEST_F(GpuAttention, EveryPatternInBothTypesAndHeadDims) {
  const Axis q{300, 128, {300, 170}}, kv{290, 128, {290, 131}};
  for (const DType dtype : test::kHalfTypes) {
    for (const int head_dim : test::kHeadDims) {
      for (const Pattern pattern : test::kPatterns) {
        expect_works({2, 3, 3, head_dim, q, kv}, pattern, dtype);
      }
    }
  }
}

TEST_F(GpuAttention, EveryLength) {  // A7
  for (const int head_dim : test::kHeadDims) {
    for (const int tokens : {1, 2, 63, 64, 65, 127, 128, 129, 255, 545}) {
      expect_works({1, 1, 1, head_dim, {tokens, 128}, {tokens, 128}}, Pattern::kRandom);
      expect_works({1, 1, 1, head_dim, {129, 128}, {tokens, 128}}, Pattern::kAllLive);
    }
  }
}

TEST_F(GpuAttention, EveryBlock) {
  for (const int block_q : {16, 50, 64, 100, 128}) {
    for (const int block_kv : {16, 32, 64, 128, 256}) {
      expect_works({1, 2, 2, 128, {300, block_q}, {555, block_kv}}, Pattern::kRandom);
    }
  }
}

TEST_F(GpuAttention, HeadsAndGroupedKeys) {
  constexpr int kHeads[][2] = {{1, 1}, {3, 1}, {5, 5}, {24, 8}, {33, 11}};
  for (const auto& [heads, kv_heads] : kHeads) {
    expect_works({1, heads, kv_heads, 128, {150, 64}, {150, 64}}, Pattern::kRandom);
    expect_works({1, heads, kv_heads, 64, {150, 128}, {150, 128}}, Pattern::kSkewed);
  }
}

TEST_F(GpuAttention, TextAtEitherEnd) {
  for (const TextPosition position : {TextPosition::kFirst, TextPosition::kLast}) {
    const Axis axis{400, 128, {400, 333}, 77, position};
    for (const Pattern pattern : {Pattern::kRandom, Pattern::kClustered}) {
      expect_works({2, 2, 2, 128, axis, axis}, pattern);
    }
  }
}

TEST_F(GpuAttention, ItemsWithoutTokensOrKeys) {
  const Axis full{200, 128};
  expect_works({2, 2, 2, 128, {200, 128, {0, 200}}, full}, Pattern::kRandom);
  expect_works({2, 2, 2, 128, full, {200, 128, {0, 200}}}, Pattern::kAllLive);
}

// What lies past an item's length is never read: NaN there would show.
TEST_F(GpuAttention, PaddingIsNeverRead) {
  const Axis axis{300, 128, {300, 170}};
  for (const int head_dim : test::kHeadDims) {
    auto c =
        test::random_attention({2, 2, 2, head_dim, axis, axis}, DType::kBF16, Pattern::kAllLive);
    for (const Tensor* tensor : {&c.q, &c.k, &c.v}) {
      test::poison(tensor->view().slice(0, 1, 2).slice(1, 170, 300));
    }
    run(*backend, c);
    auto clean =
        test::random_attention({2, 2, 2, head_dim, axis, axis}, DType::kBF16, Pattern::kAllLive);
    run(*backend, clean);
    EXPECT_TRUE(test::same_bits(c.out, clean.out));
    test::expect_correct(clean);
  }
}

// Few long items are cut; their parts are merged in order, whoever ends last.
TEST_F(GpuAttention, CutItemsAreRightAndRepeatBitForBit) {
  for (const int head_dim : test::kHeadDims) {
    for (const int block_kv : {64, 128, 256}) {
      const AttentionShape shape{1, 2, 2, head_dim, {200, 128}, {3000, block_kv}};
      auto c = test::random_attention(shape, DType::kBF16, Pattern::kAllLive);
      run(*backend, c);
      test::expect_correct(c);
      for (int repeat = 0; repeat < 5; ++repeat) {
        auto again = test::random_attention(shape, DType::kBF16, Pattern::kAllLive);
        run(*backend, again);
        ASSERT_TRUE(test::same_bits(again.out, c.out)) << repeat;
        ASSERT_TRUE(test::same_bits(again.lse, c.lse)) << repeat;
      }
    }
  }
}

// Scores far apart, so that the reference of the softmax has to move.
TEST_F(GpuAttention, LargeScores) {
  for (const DType dtype : test::kHalfTypes) {
    auto c =
        test::random_attention({1, 1, 1, 128, {128, 128}, {900, 128}}, dtype, Pattern::kAllLive);
    for (index_t i = 0; i < c.k.num_elements(); ++i) {
      const float growth = 1 + static_cast<float>(i / 128) / 128;  // the last keys are the largest
      store_float(c.k, i, load_float(c.k, i) * growth);
    }
    run(*backend, c);
    test::expect_correct(c);
  }
}

// --- rows that are not computed ---

TEST_F(GpuAttention, CachedRowsHoldTheForecast) {
  const Axis axis{300, 128, {300, 170}};
  for (const DType dtype : test::kHalfTypes) {
    for (const int head_dim : test::kHeadDims) {
      for (int num_terms = 1; num_terms <= 3; ++num_terms) {
        for (const DType term : {DType::kF32, dtype}) {
          SCOPED_TRACE(testing::Message() << head_dim << ", " << num_terms << " terms");
          auto c = test::random_reuse({2, 3, 3, head_dim, axis, axis}, dtype, Pattern::kRandom,
                                      num_terms, term);
          test::run(*backend, c);
          test::expect_correct(c);
        }
      }
    }
  }
}

TEST_F(GpuAttention, CachedRowsHoldTheForecastUnderEveryPattern) {
  for (const int block_q : {16, 50, 128}) {
    for (const Pattern pattern : test::kPatterns) {
      auto c = test::random_reuse({1, 5, 5, 128, {1000, block_q}, {1000, 128}}, DType::kBF16,
                                  pattern, 2, DType::kF32);
      test::run(*backend, c);
      test::expect_correct(c);
    }
  }
}

// --- long sequences: a sample of the rows ---

void expect_sampled_rows(const AttentionCase& c) {
  const int tokens = c.sparsity.q.tokens, heads = c.sparsity.num_heads;
  const int dim = static_cast<int>(c.q.size(3));
  std::mt19937 random(5);
  for (int sample = 0; sample < 40; ++sample) {
    const int token = static_cast<int>(random() % tokens);
    const int head = static_cast<int>(random() % heads);
    const index_t at = (static_cast<index_t>(token) * heads + head) * dim;
    if (!test::is_live(c.sparsity, 0, head, token)) {
      EXPECT_EQ(test::bits_of(c.out, at), test::canary_bits(c.out.dtype()));
      continue;
    }
    std::vector<std::vector<double>> rows[2];
    std::vector<const double*> keys, values;
    for (int key = 0; key < tokens; ++key) {
      if (!test::is_used(c.sparsity, 0, head, token, key)) continue;
      for (int which = 0; which < 2; ++which) {
        std::vector<double> row(dim);
        const index_t from = (static_cast<index_t>(key) * heads + head) * dim;
        for (int d = 0; d < dim; ++d) row[d] = load_float(which ? c.v : c.k, from + d);
        rows[which].push_back(std::move(row));
      }
    }
    for (const auto& row : rows[0]) keys.push_back(row.data());
    for (const auto& row : rows[1]) values.push_back(row.data());
    std::vector<double> query(dim);
    for (int d = 0; d < dim; ++d) query[d] = load_float(c.q, at + d);
    const auto wanted = test::attend(query.data(), keys, values, dim, c.scale);
    for (int d = 0; d < dim; ++d) {
      EXPECT_NEAR(
          load_float(c.out, at + d), wanted.value[d],
          test::attention_error(c.q.dtype(), wanted.row, wanted.value[d], wanted.magnitude[d]))
          << "token " << token << ", head " << head;
    }
  }
}

TEST_F(GpuAttention, LongSequences) {
  for (const int tokens : {4545, 33024}) {
    for (const Pattern pattern : {Pattern::kRandom, Pattern::kClustered, Pattern::kSkewed}) {
      AttentionCase c = test::random_attention({1, 2, 2, 128, {tokens, 128}, {tokens, 128}},
                                               DType::kBF16, pattern);
      run(*backend, c);
      expect_sampled_rows(c);
    }
  }
}

// --- streams and graphs ---

struct DeviceCall {
  AttentionCase c;
  AttentionPlan plan;
  Tensor q, k, v, out, lse;

  DeviceCall(Backend& backend, int tokens, Pattern pattern, Stream stream)
      : c(test::random_attention({1, 4, 4, 128, {tokens, 128}, {tokens, 128}}, DType::kBF16,
                                 pattern)) {
    backend.build_attention_plan(c.sparsity.symbols(), plan, stream);
    q = test::upload(backend, c.q);
    k = test::upload(backend, c.k);
    v = test::upload(backend, c.v);
    out = test::upload(backend, c.out);
    lse = test::upload(backend, c.lse);
    backend.synchronize(stream);
    backend.synchronize({});
  }
  void enqueue(Backend& backend, Stream stream) {
    attention(backend, plan, q, k, v, c.scale, out, lse, stream);
  }
  void expect_correct(Backend& backend) {
    test::download(backend, out, c.out);
    test::download(backend, lse, c.lse);
    test::expect_correct(c);
  }
};

TEST_F(GpuAttention, TwoStreamsAtOnce) {
  test::GpuStream first, second;
  DeviceCall a(*backend, 700, Pattern::kRandom, first.handle());
  DeviceCall b(*backend, 450, Pattern::kAllLive, second.handle());
  for (int repeat = 0; repeat < 20; ++repeat) {
    a.enqueue(*backend, first.handle());
    b.enqueue(*backend, second.handle());
  }
  ASSERT_EQ(first.synchronize(), cudaSuccess);
  ASSERT_EQ(second.synchronize(), cudaSuccess);
  a.expect_correct(*backend);
  b.expect_correct(*backend);
}

TEST_F(GpuAttention, ReplaysInAGraph) {
  test::GpuStream stream;
  DeviceCall call(*backend, 700, Pattern::kRandom, stream.handle());
  call.enqueue(*backend, stream.handle());  // allocates scratch
  ASSERT_EQ(stream.synchronize(), cudaSuccess);
  backend->copy(call.c.out, call.out, {});  // canaries again
  backend->synchronize({});
  ASSERT_EQ(stream.capture_and_replay([&] { call.enqueue(*backend, stream.handle()); }, 3),
            cudaSuccess);
  call.expect_correct(*backend);
}

}  // namespace
}  // namespace flashomni
