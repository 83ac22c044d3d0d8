// Symbols chosen on a GPU, against the selection on the host.
//
// Means and masses are fp32 there and partly fp64 here, so a block whose running mass meets a
// threshold almost exactly may fall on either side. Raising a threshold only takes blocks away:
// what the GPU chose must lie between the host's choices for thresholds a little lower and higher.
#include <bit>

#include "gpu.h"

#include "flashomni/policy.h"

namespace flashomni {
namespace {

using test::Axis;

struct PolicyCase {
  int batch = 1, heads = 3, kv_heads = 3, head_dim = 64;
  Axis q{700, 64, {}, 130, TextPosition::kFirst}, kv = q;
  FlashOmniOptions options{.tau_q = .5, .tau_kv = .2};
  double ramp = 1;
  DType dtype = DType::kBF16;
};

struct Selected {
  SparseSymbols symbols;
  std::vector<float> c, g;
};

class GpuPolicy : public test::GpuTest {
 protected:
  // Tokens that resemble their neighbours, as those of a picture do, so that blocks differ.
  static Tensor tokens(const PolicyCase& c, bool is_q, unsigned seed) {
    const Axis& axis = is_q ? c.q : c.kv;
    const index_t heads = is_q ? c.heads : c.kv_heads, dim = c.head_dim;
    Tensor x = test::random_tensor(c.dtype, {c.batch, axis.tokens, heads, dim}, seed);
    const Tensor slow = test::random_tensor(DType::kF32, {axis.tokens / 40 + 2, dim}, seed + 1);
    for (index_t i = 0; i < x.num_elements(); ++i) {
      const index_t token = i / dim / heads % axis.tokens, d = i % dim;
      store_float(x, i, .5f * load_float(x, i) + load_float(slow, token / 40 * dim + d));
    }
    // What lies past an item's length must not be read.
    for (int item = 0; item < c.batch; ++item) {
      test::poison(x.view().slice(0, item, item + 1).slice(1, axis.length(item), axis.tokens));
    }
    return x;
  }

  static Selected select(Backend& backend, const PolicyCase& c, const Tensor& q, const Tensor& k) {
    const Tensor dq = test::upload(backend, q), dk = test::upload(backend, k);
    SymbolWords words = make_symbol_words(backend, c.q.grid(c.batch), c.kv.grid(c.batch), c.heads);
    for (const Tensor* tensor : {&words.cache, &words.skip}) {
      backend.copy(test::canary_tensor(DType::kI32, tensor->view().layout), *tensor, {});
    }
    const Layout rows{c.batch, c.heads, words.q_grid.num_blocks()};
    const Tensor empty = test::canary_tensor(DType::kF32, rows);
    const Tensor c_score = test::upload(backend, empty), g_score = test::upload(backend, empty);
    backend.select_symbols(dq, dk, c.options, c.ramp, words, {c_score, g_score}, {});
    Selected result{download_symbols(backend, words), {}, {}};
    for (const auto& [from, to] : {std::pair(&c_score, &result.c), {&g_score, &result.g}}) {
      Tensor host = Tensor::host(DType::kF32, rows);
      test::download(backend, *from, host);
      to->assign(host.as<float>(), host.as<float>() + host.num_elements());
    }
    return result;
  }

  static void expect_subset(std::span<const std::uint32_t> words, std::span<const std::uint32_t> of,
                            const char* what) {
    ASSERT_EQ(words.size(), of.size());
    int bits = 0;
    for (std::size_t w = 0; w < words.size(); ++w) bits += std::popcount(words[w] & ~of[w]);
    EXPECT_EQ(bits, 0) << what;
  }
  static int differences(const SparseSymbols& a, const SparseSymbols& b) {
    int bits = 0;
    for (std::size_t w = 0; w < a.cache_words().size(); ++w) {
      bits += std::popcount(a.cache_words()[w] ^ b.cache_words()[w]);
    }
    for (std::size_t w = 0; w < a.skip_words().size(); ++w) {
      bits += std::popcount(a.skip_words()[w] ^ b.skip_words()[w]);
    }
    return bits;
  }

  // Takes out of `symbols` the rows whose rank is decided by rounding: their C or G is, but for a
  // few ulps, that of the first block that is not low. With a thousand blocks G differs by less.
  static void drop_ties(const PolicyCase& c, const Selected& host, SparseSymbols& symbols) {
    const BlockGrid& grid = symbols.q_grid();
    const bool per_head = c.options.scope == PolicyScope::kHead;
    for (int row = 0; row < c.batch * c.heads; ++row) {
      const int item = row / c.heads, first = per_head ? row : item * c.heads;
      for (const std::vector<float>* scores : {&host.c, &host.g}) {
        std::vector<std::pair<double, int>> values;
        double total = 0, running = 0;
        for (int i = 0; i < grid.num_blocks(); ++i) {
          if (grid.is_text(item, i) || grid.at(item, i).count == 0) continue;
          double sum = 0;
          for (int h = first; h < first + (per_head ? 1 : c.heads); ++h) {
            sum += (*scores)[h * grid.num_blocks() + i];
          }
          values.emplace_back(sum, i);
          total += sum;
        }
        std::ranges::sort(values);
        std::size_t low = 0;
        while (low + 1 < values.size() &&
               running + values[low].first <= c.options.tau_q * c.ramp * total) {
          running += values[low++].first;
        }
        for (const auto& [value, i] : values) {
          if (std::abs(value - values[low].first) > 1e-6 * values[low].first) continue;
          symbols.cache(item, row % c.heads, i);
        }
      }
    }
  }

  void expect_works(const PolicyCase& c) {
    SCOPED_TRACE(testing::Message()
                 << dtype_name(c.dtype) << ", batch " << c.batch << ", heads " << c.heads << "/"
                 << c.kv_heads << ", head_dim " << c.head_dim << ", tokens " << c.q.tokens << " by "
                 << c.q.block << ", keys " << c.kv.tokens << " by " << c.kv.block << ", text "
                 << c.q.text << ", tau_q " << c.options.tau_q << ", tau_kv " << c.options.tau_kv);
    const Tensor q = tokens(c, true, 1), k = tokens(c, false, 1);
    const auto host = make_backend("reference");
    const Selected actual = select(*backend, c, q, k), expected = select(*host, c, q, k);
    ASSERT_EQ(actual.c.size(), expected.c.size());
    for (std::size_t i = 0; i < expected.c.size(); ++i) {
      ASSERT_NEAR(actual.c[i], expected.c[i], 1e-5 * (1 + c.q.text)) << i;
      ASSERT_NEAR(actual.g[i], expected.g[i], 1e-5 * (1 + c.q.text)) << i;
    }
    PolicyCase lower = c, higher = c;
    lower.ramp *= 1 - 1e-4;
    higher.ramp *= 1 + 1e-4;
    SparseSymbols most = select(*host, lower, q, k).symbols, decided = actual.symbols;
    SparseSymbols least = select(*host, higher, q, k).symbols;
    for (SparseSymbols* symbols : {&most, &decided, &least}) drop_ties(c, expected, *symbols);
    expect_subset(decided.cache_words(), most.cache_words(), "live rows of the host's");
    expect_subset(decided.skip_words(), most.skip_words(), "used pairs of the host's");
    expect_subset(least.cache_words(), decided.cache_words(), "live rows missing");
    expect_subset(least.skip_words(), decided.skip_words(), "used pairs missing");
    const int different = differences(actual.symbols, expected.symbols);
    different_bits_ += different;
    all_pairs_ += expected.symbols.stats().block_pairs;
  }
  void TearDown() override {
    if (all_pairs_ == 0) return;
    RecordProperty("different_bits", different_bits_);
    EXPECT_LE(different_bits_, 1 + all_pairs_ / 10000) << "of " << all_pairs_ << " pairs";
  }
  int different_bits_ = 0;
  std::int64_t all_pairs_ = 0;
};

TEST_F(GpuPolicy, EveryTypeHeadDimAndTextPosition) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int head_dim : {8, 24, 64, 128}) {
      PolicyCase c;
      c.dtype = dtype;
      c.head_dim = head_dim;
      expect_works(c);
    }
  }
  for (const TextPosition position : {TextPosition::kLast, TextPosition::kNone}) {
    PolicyCase c;
    c.q.position = c.kv.position = position;
    if (position == TextPosition::kNone) c.q.text = c.kv.text = 0;
    expect_works(c);
  }
}

TEST_F(GpuPolicy, EveryOption) {
  for (int given = 0; given < 32; ++given) {
    PolicyCase c;
    c.options.scope = given & 1 ? PolicyScope::kLayer : PolicyScope::kHead;
    if (given & 2) c.options.sim_threshold = .7;
    c.options.keep_text_kv = (given & 4) == 0;
    c.options.subtract_k_mean = (given & 8) != 0;
    c.options.log_count_bias = (given & 16) != 0;
    expect_works(c);
  }
}

TEST_F(GpuPolicy, EveryThreshold) {
  for (const double tau_q : {-1., 0., .1, .9, 1.}) {
    for (const double tau_kv : {-1., 0., .03, .5, 1.}) {
      PolicyCase c;
      c.options.tau_q = tau_q;
      c.options.tau_kv = tau_kv;
      c.options.keep_text_kv = tau_q != .9;
      c.ramp = tau_q == .1 ? .37 : 1;
      if (tau_q >= 1 || tau_kv >= 1) c.ramp = 1 + 1e-3;  // all but one, clear of rounding
      expect_works(c);
    }
  }
}

TEST_F(GpuPolicy, EveryShape) {
  const auto with = [&](int batch, int heads, int kv_heads, const Axis& q, const Axis& kv) {
    PolicyCase c;
    c.batch = batch;
    c.heads = heads;
    c.kv_heads = kv_heads;
    c.q = q;
    c.kv = kv;
    expect_works(c);
    c.options.scope = PolicyScope::kLayer;
    c.options.sim_threshold = .7;
    expect_works(c);
  };
  const Axis joint{500, 64, {}, 100, TextPosition::kFirst};
  for (const auto& [heads, kv_heads] : {std::pair(1, 1), {24, 8}, {33, 11}, {64, 64}}) {
    with(1, heads, kv_heads, joint, joint);
  }
  const Axis ragged{500, 64, {500, 333}, 100, TextPosition::kFirst};
  with(2, 3, 3, ragged, ragged);
  const Axis late{500, 64, {500, 333}, 100, TextPosition::kLast};  // no valid text in item 1
  with(2, 3, 3, late, late);
  with(2, 2, 2, {200, 64, {0, 200}, 64, TextPosition::kFirst},
       {200, 64, {200, 200}, 64, TextPosition::kFirst});
  with(1, 2, 2, {1, 64}, {1, 64});
  with(1, 2, 2, {2, 1, {}, 1, TextPosition::kFirst}, {2, 1, {}, 1, TextPosition::kFirst});
  with(1, 2, 2, {70, 1, {}, 7, TextPosition::kFirst}, {70, 1, {}, 7, TextPosition::kFirst});
  with(1, 2, 2, {300, 64, {}, 300, TextPosition::kFirst}, {300, 64, {}, 300, TextPosition::kFirst});
  with(1, 2, 2, {500, 16, {}, 100, TextPosition::kLast}, {500, 64, {}, 100, TextPosition::kLast});
  with(1, 2, 2, {500, 128, {}, 100, TextPosition::kFirst},
       {500, 16, {}, 100, TextPosition::kFirst});
  with(1, 1, 1, {2100, 2, {}, 60, TextPosition::kFirst}, {2100, 2, {}, 60, TextPosition::kFirst});
  // So many rows that a thread block takes 16 of them instead of 4; few and many columns.
  with(1, 64, 64, {500, 16, {}, 100, TextPosition::kFirst},
       {500, 16, {}, 100, TextPosition::kFirst});
  with(2, 12, 4, {1300, 8, {1300, 900}, 70, TextPosition::kLast},
       {1300, 8, {1300, 900}, 70, TextPosition::kLast});
}

// Equal masses are taken by position, the thresholds being clear of whole blocks.
TEST_F(GpuPolicy, TiesGoToTheLowerBlock) {
  for (const double tau : {.23, .61, .99}) {
    PolicyCase c;
    c.options = {.tau_q = tau, .tau_kv = tau, .keep_text_kv = false};
    const auto fill = [&](const Axis& axis) {
      Tensor x = Tensor::host(c.dtype, {1, axis.tokens, c.heads, c.head_dim});
      for (index_t i = 0; i < x.num_elements(); ++i) {
        store_float(x, i,
                    i / c.heads / c.head_dim / 64 % 3 == 1 ? .25f : .5f);  // two kinds of block
      }
      return x;
    };
    c.q.text = c.kv.text = 128;
    c.q.tokens = c.kv.tokens = 704;
    const Tensor q = fill(c.q), k = fill(c.kv);
    const auto host = make_backend("reference");
    EXPECT_EQ(differences(select(*backend, c, q, k).symbols, select(*host, c, q, k).symbols), 0);
  }
}

TEST_F(GpuPolicy, SelectsNothingByScoresThatAreNotFinite) {
  PolicyCase c;
  const Tensor q = tokens(c, true, 1), k = tokens(c, false, 1);
  test::poison(k.view());
  EXPECT_EQ(select(*backend, c, q, k).symbols, SparseSymbols(c.q.grid(1), c.kv.grid(1), c.heads));
}

// One call after another on the same words, of other thresholds and of none.
TEST_F(GpuPolicy, WritesEveryWordEachTime) {
  PolicyCase c;
  const Tensor q = tokens(c, true, 1), k = tokens(c, false, 1);
  const Tensor dq = test::upload(*backend, q), dk = test::upload(*backend, k);
  SymbolWords words = make_symbol_words(*backend, c.q.grid(1), c.kv.grid(1), c.heads);
  const FlashOmniOptions none{.tau_q = 0, .tau_kv = 0};
  const SparseSymbols all_live(c.q.grid(1), c.kv.grid(1), c.heads);
  for (int repeat = 0; repeat < 2; ++repeat) {
    backend->select_symbols(dq, dk, c.options, 1, words, {}, {});
    EXPECT_EQ(download_symbols(*backend, words), select(*backend, c, q, k).symbols);
    backend->select_symbols(dq, dk, none, 1, words, {}, {});
    EXPECT_EQ(download_symbols(*backend, words), all_live);
  }
}

// Kernels start before the one ahead has ended: calls that wait for nothing, in turns over the
// words of three layers and of both scopes, give what each layer gives alone.
TEST_F(GpuPolicy, SelectsInARow) {
  PolicyCase c;
  c.heads = c.kv_heads = 24;
  c.q = c.kv = {4608, 128, {}, 512, TextPosition::kFirst};
  std::vector<Tensor> qs, ks;
  std::vector<SymbolWords> words;
  std::vector<SparseSymbols> expected;
  constexpr PolicyScope kScopes[] = {PolicyScope::kHead, PolicyScope::kLayer, PolicyScope::kHead};
  for (unsigned layer = 0; layer < 3; ++layer) {
    c.options.scope = kScopes[layer];
    const Tensor q = tokens(c, true, 1 + layer), k = tokens(c, false, 4 + layer);
    expected.push_back(select(*backend, c, q, k).symbols);
    qs.push_back(test::upload(*backend, q));
    ks.push_back(test::upload(*backend, k));
    words.push_back(make_symbol_words(*backend, c.q.grid(1), c.kv.grid(1), c.heads));
  }
  for (int i = 0; i < 300; ++i) {
    c.options.scope = kScopes[i % 3];
    backend->select_symbols(qs[i % 3], ks[i % 3], c.options, 1, words[i % 3], {}, {});
  }
  for (int layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(download_symbols(*backend, words[layer]), expected[layer]) << layer;
  }
  EXPECT_NE(expected[0], expected[1]);
}

TEST_F(GpuPolicy, ReadsStridedViews) {
  PolicyCase c;
  const Tensor q = tokens(c, true, 1), k = tokens(c, false, 3);
  Tensor fused = test::canary_tensor(c.dtype, {1, c.q.tokens, 2 * c.heads, c.head_dim});
  for (index_t i = 0; i < q.num_elements(); ++i) {
    const index_t row = i / (c.heads * c.head_dim), rest = i % (c.heads * c.head_dim);
    store_float(fused, row * 2 * c.heads * c.head_dim + rest, load_float(q, i));
    store_float(fused, (row * 2 + 1) * c.heads * c.head_dim + rest, load_float(k, i));
  }
  const Tensor device = test::upload(*backend, fused);
  SymbolWords words = make_symbol_words(*backend, c.q.grid(1), c.kv.grid(1), c.heads);
  backend->select_symbols(device.view().slice(2, 0, c.heads),
                          device.view().slice(2, c.heads, 2 * c.heads), c.options, 1, words, {},
                          {});
  EXPECT_EQ(download_symbols(*backend, words), select(*backend, c, q, k).symbols);
}

// --- the worked example of docs/paper_map.md ---

// Head_dim 64 instead of 4: the values of the example, zeros after them, and q four times as large
// because logits are divided by 8 instead of 2. Block means and cosines stay what they are.
Tensor example_tensor(int (*pattern)(int h, int d, int b), int modulus, int token_factor,
                      float factor) {
  Tensor x = Tensor::host_zeros(DType::kBF16, {1, 26, 2, 64});
  for (int t = 0; t < 26; ++t) {
    for (int h = 0; h < 2; ++h) {
      for (int d = 0; d < 4; ++d) {
        const float value = (pattern(h, d, t / 4) % modulus - modulus / 2) / 4.0f +
                            ((t + token_factor * d) % 3 - 1) / 8.0f;
        store_float(x, (t * 2 + h) * 64 + d, factor * value);
      }
    }
  }
  return x;
}

struct Example {
  const char* name;
  TextPosition text;
  FlashOmniOptions options;
  std::vector<std::uint32_t> cache, skip;
};

TEST_F(GpuPolicy, GivesTheWordsOfTheWorkedExample) {
  const Tensor q = example_tensor(
      [](int h, int d, int b) { return 3 * b * b + 5 * h + 7 * d * b + 2 * d + 4 * h * d * b; }, 13,
      1, 4);
  const Tensor k = example_tensor(
      [](int h, int d, int b) { return 5 * b * b + 2 * h + 3 * d * b + 4 * d + 6 * h * b; }, 11, 2,
      1);
  // A row of bits 0 .. 6 reads from the right.
  const Example examples[] = {
      {"A",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .10},
       {3, 3, 3, 1, 3, 2, 2},
       {0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0, 0, 0x7f, 0x7f, 0x7f, 0, 0x6f, 0x77, 0x5b}},
      {"B",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .10, .scope = PolicyScope::kLayer},
       {3, 3, 3, 0, 3, 3, 3},
       {0x7f, 0x7f, 0x7f, 0, 0x7f, 0x77, 0x5f, 0x7f, 0x7f, 0x7f, 0, 0x6f, 0x77, 0x5b}},
      {"C",
       TextPosition::kLast,
       {.tau_q = .5, .tau_kv = .10},
       {3, 2, 1, 2, 1, 3, 3},
       {0x7b, 0, 0x7e, 0, 0x7e, 0x7f, 0x7f, 0x6f, 0x6f, 0, 0x7d, 0, 0x7f, 0x7f}},
      {"D",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .25, .sim_threshold = .978},
       {3, 3, 3, 1, 3, 3, 2},
       {0x7f, 0x7f, 0x6f, 0x5f, 0x6f, 0x7f, 0, 0x7f, 0x7f, 0x2f, 0, 0x67, 0x27, 0x5b}},
      {"E",
       TextPosition::kFirst,
       {.tau_q = .5, .tau_kv = .25},
       {3, 3, 3, 1, 3, 2, 2},
       {0x7f, 0x7f, 0x67, 0x5f, 0x6f, 0, 0, 0x7f, 0x7f, 0x2f, 0, 0x67, 0x27, 0x5b}},
  };
  for (const Example& example : examples) {
    SCOPED_TRACE(example.name);
    PolicyCase c;
    c.heads = c.kv_heads = 2;
    c.q = c.kv = {26, 4, {}, example.text == TextPosition::kFirst ? 8 : 6, example.text};
    c.options = example.options;
    const SparseSymbols symbols = select(*backend, c, q, k).symbols;
    EXPECT_TRUE(std::ranges::equal(symbols.cache_words(), example.cache));
    EXPECT_TRUE(std::ranges::equal(symbols.skip_words(), example.skip));
  }
}

}  // namespace
}  // namespace flashomni
