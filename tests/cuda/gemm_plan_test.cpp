// Plans of GEMM-Q and GEMM-O built on a GPU from symbols there: the lists of the host builders,
// exactly, and what the projections make of them.
#include <cstring>

#include "gpu.h"

#include "backend/cuda/gemm_lists.h"
#include "backend/cuda/tiles.h"

namespace flashomni {
namespace {

using cuda::GemmTile;
using cuda::HeadTile;
using test::Axis;
using test::GemmQCase;
using test::OutputLayer;
using test::OutputShape;
using test::Pattern;
using test::Sparsity;
using test::TokenRange;

template <typename Tile>
void expect_same(const std::vector<Tile>& actual, const std::vector<Tile>& expected,
                 const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof actual[i]), 0) << what << " " << i;
  }
}

// The same symbols with every 41st pair of head and row block turned over: most row blocks keep
// theirs, and of many heads few change in a row block, so that every word has to be looked at.
Sparsity partly_changed(Sparsity sparsity) {
  for (std::size_t i = 3; i < sparsity.cache.size(); i += 41) sparsity.cache[i] ^= 1;
  return sparsity;
}

class GpuGemmPlan : public test::GpuTest {
 protected:
  void expect_host_lists(const SparseSymbols& symbols, const SparseSymbols* previous,
                         TokenRange range) {
    SymbolWords words = test::upload_words(*backend, symbols);
    const SymbolWords before = previous ? test::upload_words(*backend, *previous) : SymbolWords();
    GemmPlan expected, actual;
    build_gemm_plan(symbols, range.first, range.count, previous, expected);
    builder_.build(words, range.first, range.count, previous ? &before : nullptr, heads_, nullptr);
    builder_.read_back(actual, nullptr);
    ASSERT_EQ(actual.row_blocks, expected.row_blocks);
    ASSERT_EQ(actual.head_lists, expected.head_lists);
    EXPECT_EQ(builder_.shape().total_rows, expected.total_rows);
    const SparseSymbols others(symbols.q_grid(), symbols.kv_grid(), symbols.num_heads());
    upload_symbols(*backend, others, words);  // the tiles are those of the last build
    expect_host_tiles(expected);
  }
  void expect_host_tiles(const GemmPlan& plan) {
    for (const int clusters : {66, 7, 1, 1000}) {
      SCOPED_TRACE(testing::Message() << clusters << " clusters");
      builder_.make_head_tiles(clusters, tiles_, nullptr);
      expect_same(read_back<HeadTile>(tiles_, nullptr), cuda::make_head_tiles(plan, clusters),
                  "head tile");
      for (const int out_features : {8, 256, 264, 3072}) {
        builder_.make_column_tiles(out_features, clusters, tiles_, nullptr);
        auto columns = cuda::make_column_tiles(plan, out_features);
        cuda::halve_last_tiles(out_features, clusters, columns);
        expect_same(read_back<GemmTile>(tiles_, nullptr), columns, "column tile");
      }
    }
    for (const int heads_per_tile : {8, 4}) {
      builder_.make_row_tiles(heads_per_tile, tiles_, nullptr);
      expect_same(read_back<GemmTile>(tiles_, nullptr), cuda::make_row_tiles(plan, heads_per_tile),
                  "row tile");
    }
  }
  void expect_host_lists(int batch, int heads, const Axis& axis, TokenRange range) {
    for (const Pattern pattern : test::kPatterns) {
      SCOPED_TRACE(testing::Message()
                   << "batch " << batch << ", heads " << heads << ", tokens " << axis.tokens
                   << " by " << axis.block << ", rows " << range.first << " + " << range.count
                   << ", pattern " << static_cast<int>(pattern));
      const auto sparsity = test::projection_sparsity(batch, heads, axis, pattern);
      const SparseSymbols symbols = sparsity.symbols();
      const SparseSymbols previous = partly_changed(sparsity).symbols();
      expect_host_lists(symbols, nullptr, range);
      expect_host_lists(symbols, &previous, range);
    }
  }

  cuda::GemmListBuilder builder_;  // used again and again: nothing of a call before may stay
  cuda::DeviceBuffer heads_;
  cuda::TileList tiles_;
};

TEST_F(GpuGemmPlan, HasTheListsOfTheHost) {
  for (const int heads : {1, 3, 5, 24, 33, 40}) {
    const Axis joint{900, 64, {}, 130, TextPosition::kFirst};
    expect_host_lists(1, heads, joint, {0, 900});
    expect_host_lists(1, heads, joint, {0, 130});
    expect_host_lists(1, heads, joint, {130, 770});
    const Axis ragged{700, 64, {700, 333, 64}, 130, TextPosition::kLast};
    expect_host_lists(3, heads, ragged, {0, 700});
    expect_host_lists(3, heads, ragged, {0, 570});
  }
  expect_host_lists(2, 2, {200, 64, {0, 200}}, {0, 200});
  expect_host_lists(1, 2, {200, 64}, {0, 0});
  expect_host_lists(1, 1, {1, 128}, {0, 1});
  for (const int blocks : {32, 65}) {  // a whole number of words, and one more
    expect_host_lists(1, 3, {blocks * 16, 16}, {0, blocks * 16});
  }
}

TEST_F(GpuGemmPlan, HasTheListsOfTheHostForLongSequences) {
  const Axis axis{33024, 128, {}, 512, TextPosition::kFirst};
  expect_host_lists(2, 24, axis, {0, 33024});
  expect_host_lists(1, 40, axis, {512, 32512});
  expect_host_lists(1, 5, {1100 * 16, 16}, {0, 1100 * 16});  // more row blocks than threads
}

TEST_F(GpuGemmPlan, SaysWhatTheHostBuilderSays) {
  const Axis axis{300, 64};
  const SparseSymbols symbols(axis.grid(1), axis.grid(1), 3);
  const SymbolWords words = test::upload_words(*backend, symbols);
  const SymbolWords other =
      test::upload_words(*backend, SparseSymbols(axis.grid(1), axis.grid(1), 2));
  GemmPlan plan;
  EXPECT_THROW(backend->build_gemm_plan_from(words, 3, 297, nullptr, plan, {}), Error);
  EXPECT_THROW(backend->build_gemm_plan_from(words, 0, -1, nullptr, plan, {}), Error);
  EXPECT_THROW(backend->build_gemm_plan_from(words, 0, 300, &other, plan, {}), Error);
  backend->build_gemm_plan_from(words, 0, 300, &words, plan, {});
  EXPECT_TRUE(plan.lists_on_device);
  EXPECT_TRUE(plan.row_blocks.empty() && plan.head_lists.empty());
  EXPECT_EQ(plan.total_rows, 900);
  backend->build_gemm_plan(symbols, 0, 300, nullptr, plan, {});
  EXPECT_FALSE(plan.lists_on_device);
  EXPECT_EQ(plan.row_blocks.size(), 5u);
}

TEST_F(GpuGemmPlan, DrivesGemmQ) {
  for (const int head_dim : test::kHeadDims) {
    for (const Pattern pattern : test::kPatterns) {
      SCOPED_TRACE(testing::Message() << head_dim << " " << static_cast<int>(pattern));
      // Fewer tiles than clusters, and more.
      for (const auto& [heads, tokens] : {std::pair(5, 400), {25, 900}}) {
        const Axis axis{tokens, 128, {tokens, tokens - 230}};
        const auto sparsity = test::projection_sparsity(2, heads, axis, pattern);
        GemmQCase c = test::random_gemm_q(sparsity, {0, tokens}, 136, head_dim, DType::kBF16);
        test::add_norm_and_rope(c);
        c.from_words = true;
        test::run(*backend, c);
        test::expect_correct(c);
      }
    }
  }
}

TEST_F(GpuGemmPlan, DrivesSeveralProjectionsOfOneX) {
  for (const int head_dim : test::kHeadDims) {
    for (const unsigned on_device : {1u, 2u, 5u, 7u}) {  // bit i: of projection i
      SCOPED_TRACE(testing::Message() << head_dim << ", plans on the device " << on_device);
      std::vector<GemmQCase> cases;
      for (int i = 0; i < 3; ++i) {
        const auto sparsity = test::projection_sparsity(
            1, i == 0 ? 9 : 3, {1500, 128}, i == 2 ? Pattern::kAllLive : Pattern::kRandom, 1 + i);
        cases.push_back(
            test::random_gemm_q(sparsity, {0, 1500}, 72, head_dim, DType::kF16, 20 + 10 * i));
        cases.back().from_words = on_device >> i & 1;
      }
      test::run_together(*backend, cases);
      for (const GemmQCase& c : cases) test::expect_correct(c);
    }
  }
}

TEST_F(GpuGemmPlan, DrivesGemmO) {
  for (const bool adds : {false, true}) {
    for (const Pattern pattern : test::kPatterns) {
      SCOPED_TRACE(testing::Message() << adds << " " << static_cast<int>(pattern));
      const auto sparsity = test::projection_sparsity(2, 3, {300, 128, {300, 170}}, pattern);
      OutputShape shape{64, 264, 72, true, adds, adds};
      shape.from_words = true;
      OutputLayer layer(*backend, sparsity, {0, 300}, shape, 2, DType::kBF16);
      for (const Sparsity& symbols : {sparsity, sparsity, partly_changed(sparsity)}) {
        layer.update(symbols, 5);
        layer.expect_correct();
        layer.new_inputs(50);
        layer.dispatch({1, 2});
        layer.expect_correct();
        layer.new_inputs(60);
      }
    }
  }
}

// Whole tiles besides halved ones, of one stream of a joint sequence.
TEST_F(GpuGemmPlan, DrivesGemmOWithMoreTilesThanClusters) {
  const Axis axis{1700, 128, {}, 77, TextPosition::kFirst};
  const auto sparsity = test::projection_sparsity(1, 3, axis, Pattern::kRandom);
  OutputShape shape{64, 2056, 72, true, true};
  shape.from_words = true;
  OutputLayer layer(*backend, sparsity, {77, 1623}, shape, 0, DType::kBF16);
  layer.update(sparsity, 1);
  layer.expect_correct();
  layer.new_inputs(50);
  layer.dispatch({1});
  layer.expect_correct();
}

// One layer from the Q and K of an earlier step to the residual, with its plans.
class Layer {
 public:
  static constexpr int kHeads = 4, kHeadDim = 128, kIn = 136, kOut = 264, kTokens = 900;
  static constexpr DType kType = DType::kBF16;

  explicit Layer(Backend& backend) : backend_(backend) {
    const index_t inner = kHeads * kHeadDim;
    for (int i = 0; i < 3; ++i) {
      weights_.push_back(
          backend.pack_weight(test::random_tensor(kType, {inner, kIn}, 10 + i, .1), kType, 128));
    }
    o_weight_ = backend.pack_weight(test::random_tensor(kType, {kOut, inner}, 20, .05), kType, 0);
    for (Tensor* tensor : {&q_, &k_, &v_, &o_}) {
      *tensor = backend.allocate(kType, {1, kTokens, inner});
    }
    residual_ = backend.allocate(DType::kF32, {1, kTokens, kOut});
    orders_ = backend.allocate(DType::kU8, {1, axis_.grid(1).num_blocks()});
    const SparseSymbols all(axis_.grid(1), axis_.grid(1), kHeads);
    backend.build_gemm_plan(all, 0, kTokens, nullptr, all_, {});
    words = test::upload_words(backend, all);
    before = test::upload_words(backend, all);
    set_inputs(1);
  }

  // New operands; outputs and what is remembered as at the start.
  void set_inputs(unsigned seed) {
    const index_t inner = kHeads * kHeadDim;
    copy(test::random_tensor(kType, {1, kTokens, kHeads, kHeadDim}, seed), old_q_);
    copy(test::random_tensor(kType, {1, kTokens, kHeads, kHeadDim}, seed + 1), old_k_);
    copy(test::random_tensor(kType, {1, kTokens, kIn}, seed + 2), x_);
    for (Tensor* tensor : {&q_, &k_, &v_, &o_}) {
      copy(test::random_tensor(kType, {1, kTokens, inner}, 40), *tensor);
    }
    for (Tensor& term : terms_) {
      copy(test::random_tensor(backend_.bias_cache_dtype(kType), {1, kTokens, kOut}, 50), term);
    }
    copy(test::random_tensor(DType::kF32, {1, kTokens, kOut}, 60), residual_);
    const Tensor zeros = Tensor::host(DType::kU8, orders_.view().layout);
    std::memset(zeros.view().data, 0, static_cast<std::size_t>(zeros.num_elements()));
    copy(zeros, orders_);
    backend_.synchronize({});
  }
  void select(SymbolWords& to, Stream stream) {
    backend_.select_symbols(old_q_, old_k_, {.tau_q = .6, .tau_kv = .3}, 1, to, {}, stream);
  }
  void run(const AttentionPlan& attention_plan, const GemmPlan& plan, Stream stream) {
    const InputProjection projections[] = {{&plan, &weights_[0], {}, {}, q_},
                                           {&all_, &weights_[1], {}, {}, k_},
                                           {&all_, &weights_[2], {}, {}, v_}};
    backend_.gemm_qkv(x_, projections, stream);
    attention(backend_, attention_plan, by_head(q_), by_head(k_), by_head(v_), .09f, by_head(o_),
              {}, stream);
    OutputProjection projection{&o_weight_, {}, o_, {}};
    projection.residual = residual_;
    const BiasCacheView cache{1, {terms_[0], terms_[1]}, orders_};
    constexpr float kCoefficients[] = {1, .5f};
    gemm_o_update(backend_, plan, projection, 2, cache, stream);
    gemm_o_dispatch(backend_, plan, projection, kCoefficients, cache, stream);
  }
  std::vector<Tensor> results() const {
    std::vector<Tensor> copies;
    for (const Tensor* tensor : {&q_, &o_, &terms_[0], &terms_[1], &residual_, &orders_}) {
      copies.push_back(Tensor::host(tensor->dtype(), tensor->view().layout));
      test::download(backend_, *tensor, copies.back());
    }
    return copies;
  }

  SymbolWords words, before;

 private:
  static TensorView by_head(const Tensor& tensor) {
    return tensor.view().reshape({1, kTokens, kHeads, kHeadDim});
  }
  void copy(const Tensor& host, Tensor& to) {
    if (!to) to = backend_.allocate(host.dtype(), host.view().layout);
    backend_.copy(host, to, {});
    backend_.synchronize({});
  }

  Backend& backend_;
  const Axis axis_{kTokens, 64, {}, 130, TextPosition::kFirst};
  GemmPlan all_;
  std::vector<PackedWeight> weights_;
  PackedWeight o_weight_;
  Tensor old_q_, old_k_, x_, q_, k_, v_, o_, terms_[2], residual_, orders_;
};

// The whole chain with nothing in between on the host: captured once, replayed on other inputs,
// and equal to what plans of the host give.
TEST_F(GpuGemmPlan, FollowsItsInputsInAGraph) {
  Layer layer(*backend);
  test::GpuStream stream;
  AttentionPlan attention_plan;
  GemmPlan plan;
  const auto enqueue = [&] {
    layer.select(layer.words, stream.handle());
    backend->build_attention_plan_from(layer.words, attention_plan, stream.handle());
    backend->build_gemm_plan_from(layer.words, 0, Layer::kTokens, &layer.before, plan,
                                  stream.handle());
    layer.run(attention_plan, plan, stream.handle());
  };
  enqueue();  // allocates
  ASSERT_EQ(stream.synchronize(), cudaSuccess);
  const SparseSymbols first = download_symbols(*backend, layer.words);

  layer.set_inputs(7);
  layer.select(layer.words, {});
  const SparseSymbols symbols = download_symbols(*backend, layer.words);
  ASSERT_FALSE(symbols == first);
  EXPECT_LT(symbols.stats().live_q_blocks, symbols.stats().q_blocks);
  SparseSymbols before = symbols;
  for (int block = 3; block < symbols.q_grid().num_blocks(); block += 2) before.cache(0, 1, block);
  ASSERT_FALSE(before == symbols);
  upload_symbols(*backend, before, layer.before);
  upload_symbols(*backend, first, layer.words);  // the graph has to choose anew
  ASSERT_EQ(stream.capture_and_replay(enqueue, 1), cudaSuccess);
  EXPECT_EQ(download_symbols(*backend, layer.words), symbols);
  const std::vector<Tensor> replayed = layer.results();

  layer.set_inputs(7);
  backend->build_attention_plan(symbols, attention_plan, {});
  backend->build_gemm_plan(symbols, 0, Layer::kTokens, &before, plan, {});
  layer.run(attention_plan, plan, {});
  const std::vector<Tensor> expected = layer.results();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(test::same_bits(replayed[i], expected[i])) << "result " << i;
  }
}

// A build that was captured before makes the tiles of the projections after it, which are not.
TEST_F(GpuGemmPlan, ServesProjectionsOutsideTheGraphOfItsBuild) {
  const Axis axis{300, 128};
  const auto sparse = test::projection_sparsity(1, 4, axis, Pattern::kRandom);
  SymbolWords words = test::upload_words(*backend, partly_changed(sparse).symbols());
  GemmQCase c = test::random_gemm_q(sparse, {0, 300}, 72, 128, DType::kBF16);
  const PackedWeight weight = backend->pack_weight(c.weight, DType::kBF16, 128);
  const Tensor x = test::upload(*backend, c.x), bias = test::upload(*backend, c.bias);
  const Tensor out = test::upload(*backend, c.out);
  test::GpuStream stream;
  GemmPlan plan;
  backend->build_gemm_plan_from(words, 0, 300, nullptr, plan, {});
  gemm_q(*backend, plan, x, weight, bias, {}, out);  // now it knows what will be asked of it
  backend->copy(c.out, out, {});
  upload_symbols(*backend, sparse.symbols(), words);
  const auto build = [&] {
    backend->build_gemm_plan_from(words, 0, 300, nullptr, plan, stream.handle());
  };
  ASSERT_EQ(stream.capture_and_replay(build, 1), cudaSuccess);
  gemm_q(*backend, plan, x, weight, bias, {}, out);
  test::download(*backend, out, c.out);
  test::expect_correct(c);
}

}  // namespace
}  // namespace flashomni
