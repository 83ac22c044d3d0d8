// The engine's states: what each step asks of the backend and of the policy, whole-layer caching,
// resets, statistics, fallbacks.
#include "gmock/gmock.h"

#include "errors.h"
#include "idle_backend.h"
#include "oracle.h"

namespace flashomni::test {
namespace {

using testing::IsEmpty;
using testing::StartsWith;

EngineOptions toy_options() {
  EngineOptions options;
  options.warmup = 1;
  options.interval = 3;
  options.block_q = options.block_kv = kBlock;
  return options;
}

// Caches the image blocks of `cached_heads` heads, skips nothing.
MaskScript cache_image(int cached_heads) {
  return [=](int, int, int) {
    Masks masks;
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kBlocks; ++i) {
        masks.cache[h][i] = i < kTextBlocks || h >= cached_heads;
        std::ranges::fill(masks.skip[h][i], true);
      }
    }
    return masks;
  };
}

class EngineState : public testing::Test {
 protected:
  Engine make(const EngineOptions& options, MaskScript script) {
    return Engine(backend_, options, std::make_unique<ScriptedPolicy>(std::move(script)));
  }

  // Runs one step of one branch; returns what it asked of the backend.
  Calls run(Engine& engine, int step, int branch = 0) {
    backend_.calls = {};
    engine.begin_step(step, branch);
    for (int layer = 0; layer < kLayers; ++layer) model_.run(engine, layer, step, branch);
    return backend_.calls;
  }

  IdleBackend backend_;
  ToyModel model_{backend_};
};

// Layer 0 has two streams, layer 1 one: nine projections of Q, K and V, three of O.
constexpr Calls kFullStep{.gemm_q = 9, .attention = 2, .update = 3};
constexpr Calls kDispatchStep{.gemm_q = 9, .attention = 2, .dispatch = 3};

TEST_F(EngineState, AsksTheBackendForWhatAStepNeeds) {
  Engine engine = make(toy_options(), random_masks);
  engine.begin(toy_shape(), 5, 1);
  EXPECT_EQ(run(engine, 0), kFullStep);
  EXPECT_EQ(run(engine, 1), kDispatchStep);
  EXPECT_EQ(run(engine, 2), kDispatchStep);
  EXPECT_EQ(run(engine, 3), kFullStep);
  EXPECT_EQ(run(engine, 4), kFullStep);
}

TEST_F(EngineState, MeasuresScoresOnlyForAPolicyThatNeedsThem) {
  Engine engine(backend_, toy_options(), make_policy("flashomni", {{"tau-q", "0"}}));
  engine.begin(toy_shape(), 1, 1);
  EXPECT_EQ(run(engine, 0).scores, 0) << "a dense step makes no symbols";
  Engine without(backend_, toy_options(), make_policy("layer-cache", {}));
  without.begin(toy_shape(), 3, 1);
  EXPECT_EQ(run(without, 0).scores, 0);
}

TEST_F(EngineState, RunsEveryStepDenseForADensePolicy) {
  Engine engine(backend_, toy_options(), make_policy("dense", {}));
  engine.begin(toy_shape(), 4, 1);
  for (int step = 0; step < 4; ++step) {
    EXPECT_EQ(engine.step_kind(step), StepKind::kDense);
    EXPECT_EQ(run(engine, step), kFullStep);
  }
  EXPECT_EQ(engine.stats().dense_steps, 4);
}

TEST_F(EngineState, CachesALayerWholeOnceItsLiveFractionIsLow) {
  // One of two heads caches 5 of 7 blocks: 9/14 of the blocks stay live.
  EngineOptions options = toy_options();
  for (const auto& [threshold, whole] : {std::pair(.64, false), std::pair(9.0 / 14, true)}) {
    options.layer_cache = threshold;
    Engine engine = make(options, cache_image(1));
    engine.begin(toy_shape(), 3, 1);
    run(engine, 0);
    EXPECT_EQ(engine.wants_modules(0), whole);
    EXPECT_EQ(engine.stats().layers_cached, whole ? kLayers : 0);
    const Calls calls = run(engine, 1);
    EXPECT_EQ(calls, whole ? Calls{.forecast = 2} : kDispatchStep);
  }
}

TEST_F(EngineState, KeepsALayerInWholeLayerCachingUntilTheNextGeneration) {
  int asked = 0;
  Engine engine = make(toy_options(), [&](int layer, int branch, int step) {
    ++asked;
    return step == 0 && layer == 0 ? Masks{} : random_masks(layer, branch, step);
  });
  engine.begin(toy_shape(), 8, 1);
  EXPECT_EQ(run(engine, 0).push, 1);
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(engine.wants_modules(0));
  EXPECT_FALSE(engine.wants_modules(1));
  const Calls mixed = run(engine, 1);
  EXPECT_EQ(mixed, (Calls{.gemm_q = 3, .attention = 1, .dispatch = 1, .forecast = 1}));
  EXPECT_FALSE(engine.wants_modules(0)) << "only on update steps";
  run(engine, 2);
  EXPECT_EQ(run(engine, 3), (Calls{.gemm_q = 9, .attention = 2, .update = 3, .push = 1}));
  EXPECT_EQ(asked, 3) << "the policy is not asked again about layer 0";
  EXPECT_EQ(run(engine, 4), mixed);

  // A new generation knows nothing of the last one.
  engine.begin(toy_shape(), 8, 1);
  EXPECT_EQ(engine.stats().layers_cached, 0);
  EXPECT_EQ(engine.stats().update_steps, 0);
  EXPECT_EQ(engine.symbols(0, 0).stats().live_fraction(), 1);
  run(engine, 0);
  EXPECT_EQ(asked, 5);
}

TEST_F(EngineState, KeepsBranchesApart) {
  Engine engine = make(toy_options(), [](int layer, int branch, int step) {
    return branch == 1 ? Masks{} : random_masks(layer, branch, step);
  });
  engine.begin(toy_shape(), 4, 2);
  run(engine, 0, 0);
  EXPECT_EQ(engine.stats().layers_cached, 0);
  run(engine, 0, 1);
  EXPECT_EQ(engine.stats().layers_cached, kLayers);
  EXPECT_EQ(run(engine, 1, 1), (Calls{.forecast = 2}));
  EXPECT_EQ(run(engine, 1, 0), kDispatchStep);
  EXPECT_NE(engine.symbols(0, 0), engine.symbols(0, 1));
  EXPECT_EQ(engine.symbols(0, 1).stats().live_q_blocks, 0);
}

// What the policy saw, and the scores against pooled Q and K of the oracle.
class WatchingPolicy : public SparsityPolicy {
 public:
  explicit WatchingPolicy(std::vector<PolicyContext>& seen, BlockScores& last)
      : seen_(seen), last_(last) {}
  std::string_view name() const override { return "watching"; }
  std::optional<BlockScoreOptions> needs() const override { return BlockScoreOptions{}; }
  void select(const PolicyContext& context, SparseSymbols&) const override {
    seen_.push_back(context);
    last_ = *context.scores;
  }

 private:
  std::vector<PolicyContext>& seen_;
  BlockScores& last_;
};

TEST(EnginePolicy, SeesTheLayerTheStepAndTheScores) {
  const auto backend = make_backend("reference");
  ToyModel model(*backend);
  std::vector<PolicyContext> seen;
  BlockScores scores;
  EngineOptions options = toy_options();
  options.warmup = 2;
  options.ramp = 1.5;
  Engine engine(*backend, options, std::make_unique<WatchingPolicy>(seen, scores));
  engine.begin(toy_shape(), 6, 2);
  for (int step = 0; step < 5; ++step) {
    for (int branch = 0; branch < 2; ++branch) {
      engine.begin_step(step, branch);
      for (int layer = 0; layer < kLayers; ++layer) model.run(engine, layer, step, branch);
    }
  }
  ASSERT_EQ(seen.size(), 8u);  // updates at steps 1 and 4
  for (std::size_t n = 0; n < seen.size(); ++n) {
    EXPECT_EQ(seen[n].layer, static_cast<int>(n % 2));
    EXPECT_EQ(seen[n].branch, static_cast<int>(n / 2 % 2));
    EXPECT_EQ(seen[n].step, n < 4 ? 1 : 4);
    EXPECT_EQ(seen[n].num_steps, 6);
    EXPECT_EQ(seen[n].num_layers, kLayers);
    EXPECT_DOUBLE_EQ(seen[n].ramp, std::pow(seen[n].step / 6.0, 1.5));
  }

  const Oracle oracle(random_masks, 0, 1, ForecastKind::kTaylor);
  ASSERT_EQ(scores.logits.size(), static_cast<std::size_t>(kHeads * kBlocks * kBlocks));
  for (int h = 0; h < kHeads; ++h) {
    const Oracle::Qkv head = oracle.qkv(1, 4, 1, h);
    Matrix q(kBlocks, std::vector<double>(kHeadDim)), k = q;
    std::vector<int> count(kBlocks);
    for (int t = 0; t < kSeqLen; ++t) {
      ++count[block_of(t)];
      for (int d = 0; d < kHeadDim; ++d) {
        q[block_of(t)][d] += head.q[t][d];
        k[block_of(t)][d] += head.k[t][d];
      }
    }
    for (int i = 0; i < kBlocks; ++i) {
      for (int j = 0; j < kBlocks; ++j) {
        double logit = 0;
        for (int d = 0; d < kHeadDim; ++d) logit += q[i][d] * k[j][d] / (count[i] * count[j]);
        EXPECT_NEAR(scores.logits_row(0, h, i)[j], logit / std::sqrt(kHeadDim), 1e-5);
      }
    }
  }
}

TEST_F(EngineState, CountsWhatWasLeftUndone) {
  // Layer 0 caches the image rows of one head, 18 of 50 rows, and skips nothing; layer 1 is cached
  // whole. Steps: update, 2 dispatch, update, dispatch, dense.
  Engine engine = make(toy_options(), [](int layer, int branch, int step) {
    return layer == 1 ? Masks{} : cache_image(1)(layer, branch, step);
  });
  engine.begin(toy_shape(), 6, 2);
  for (int step = 0; step < 6; ++step) {
    for (int branch = 0; branch < 2; ++branch) run(engine, step, branch);
  }
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.update_steps, 2);
  EXPECT_EQ(stats.dispatch_steps, 3);
  EXPECT_EQ(stats.dense_steps, 1);
  EXPECT_DOUBLE_EQ(stats.cached_fraction, (.36 + 1) / 2);
  EXPECT_DOUBLE_EQ(stats.skipped_fraction, 0);
  EXPECT_DOUBLE_EQ(stats.attention_sparsity, (.36 + 1) / 2 * 3 / 6);
  EXPECT_EQ(stats.layers_cached, 1);
}

TEST_F(EngineState, CountsSkippedPairsOfLiveRows) {
  // Image rows of both heads use text and their own block of 4 (the last: 2) of 25 tokens.
  Engine engine = make(toy_options(), [](int, int, int) {
    Masks masks;
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kBlocks; ++i) {
        masks.cache[h][i] = true;
        for (int j = 0; j < kBlocks; ++j) {
          masks.skip[h][i][j] = i < kTextBlocks || j < kTextBlocks || i == j;
        }
      }
    }
    return masks;
  });
  engine.begin(toy_shape(), 3, 1);
  for (int step = 0; step < 3; ++step) run(engine, step);
  const double live = 7 * 25 + 16 * (7 + 4) + 2 * (7 + 2), all = 25 * 25;
  EXPECT_DOUBLE_EQ(engine.stats().cached_fraction, 0);
  EXPECT_DOUBLE_EQ(engine.stats().skipped_fraction, 1 - live / all);
  EXPECT_NEAR(engine.stats().attention_sparsity, (1 - live / all) / 3, 1e-15);
}

TEST_F(EngineState, NotesOnceThatAModelDoesNotForecast) {
  Engine engine(backend_, toy_options(), make_policy("layer-cache", {}));
  model_.forecasts = false;
  engine.begin(toy_shape(), 5, 1);
  for (int step = 0; step < 3; ++step) EXPECT_EQ(run(engine, step), kFullStep);
  ASSERT_EQ(engine.fallbacks().size(), 2u);
  EXPECT_EQ(engine.fallbacks()[0].layer, 0);
  EXPECT_EQ(engine.fallbacks()[0].reason,
            "the model does not forecast the layer's modules, as whole-layer caching would have "
            "it; the layer runs dense");
  EXPECT_EQ(engine.stats().attention_sparsity, 0);
  EXPECT_EQ(engine.stats().cached_fraction, 0);
}

TEST_F(EngineState, NotesThatNoStepIsSparse) {
  EngineOptions options = toy_options();
  options.warmup = 6;
  Engine engine(backend_, options, make_policy("layer-cache", {}));
  engine.begin(toy_shape(), 4, 1);
  ASSERT_EQ(engine.fallbacks().size(), 1u);
  EXPECT_THAT(engine.fallbacks()[0].reason,
              StartsWith("none of 4 steps is sparse: warmup is 6, interval "));

  Engine dense(backend_, options, make_policy("dense", {}));
  dense.begin(toy_shape(), 4, 1);
  EXPECT_THAT(dense.fallbacks(), IsEmpty());
}

TEST_F(EngineState, NotesThatCachingNeedsText) {
  SequenceShape shape = toy_shape();
  shape.segments = {{SegmentKind::kImage, kSeqLen}};
  EngineOptions options = toy_options();
  Engine engine(backend_, options, make_policy("flashomni", {}));
  engine.begin(shape, 5, 1);
  const char* reason = "no text tokens: caching needs a text/image split, nothing is cached";
  ASSERT_EQ(engine.fallbacks().size(), 1u);
  EXPECT_EQ(engine.fallbacks()[0].layer, -1);
  EXPECT_EQ(engine.fallbacks()[0].reason, reason);
  engine.begin(toy_shape(), 5, 1);
  EXPECT_THAT(engine.fallbacks(), IsEmpty());

  options.strict = true;
  Engine strict(backend_, options, make_policy("flashomni", {}));
  EXPECT_EQ(error_of([&] { strict.begin(shape, 5, 1); }, ErrorCode::kUnsupported),
            std::string("engine: ") + reason);
}

// Selects as little as a device whose kernels are too small for the sequence.
class NoSelection : public IdleBackend {
 public:
  void select_symbols(ConstTensorView, ConstTensorView, const FlashOmniOptions&, double,
                      SymbolWords&, const ScoreViews&, Stream) override {
    ++calls.select;
    throw Error(ErrorCode::kUnsupported, "select_symbols: too long");
  }
  void block_scores(ConstTensorView, ConstTensorView, const BlockGrid& q, const BlockGrid& kv,
                    const BlockScoreOptions&, BlockScores& scores, Stream) override {
    ++calls.scores;
    scores = {1, kHeads, q.num_blocks(), kv.num_blocks(), {}, {}, {}};
    scores.logits.assign(static_cast<std::size_t>(kHeads) * q.num_blocks() * kv.num_blocks(), 0);
  }
};

TEST(EngineSelection, GoesOnOnTheHostAndSaysSoWhereTheBackendCannotSelect) {
  NoSelection backend;
  ToyModel model(backend);
  Engine engine(backend, toy_options(), make_policy("flashomni", {{"tau-q", "0.8"}}));
  for (int generation = 0; generation < 2; ++generation) {  // each asks again, and says so again
    backend.calls = {};
    engine.begin(toy_shape(), 5, 1);
    for (int step = 0; step < 5; ++step) {
      engine.begin_step(step, 0);
      for (int layer = 0; layer < kLayers; ++layer) model.run(engine, layer, step, 0);
    }
    EXPECT_EQ(backend.calls.select, 1);
    EXPECT_EQ(backend.calls.scores, 2 * kLayers);  // updates at steps 0 and 3
    EXPECT_GT(engine.symbols(0, 0).stats().cached_fraction(), 0);
    ASSERT_EQ(engine.fallbacks().size(), 1u);
    EXPECT_EQ(engine.fallbacks()[0].layer, -1);
    EXPECT_EQ(engine.fallbacks()[0].reason,
              "the host chooses the symbols: select_symbols: too long");
  }
}

TEST(EngineSelection, ThrowsWhereStrictIfTheBackendCannotSelect) {
  NoSelection backend;
  ToyModel model(backend);
  EngineOptions options = toy_options();
  options.strict = true;
  Engine engine(backend, options, make_policy("flashomni", {}));
  engine.begin(toy_shape(), 5, 1);
  engine.begin_step(0, 0);
  EXPECT_EQ(error_of([&] { model.run(engine, 0, 0, 0); }, ErrorCode::kUnsupported),
            "engine: the host chooses the symbols: select_symbols: too long");
}

TEST_F(EngineState, ThrowsInsteadOfFallingBackWhereStrict) {
  EngineOptions options = toy_options();
  options.strict = true;
  Engine engine(backend_, options, make_policy("layer-cache", {}));
  model_.forecasts = false;
  engine.begin(toy_shape(), 5, 1);
  run(engine, 0);
  EXPECT_EQ(error_of([&] { run(engine, 1); }, ErrorCode::kUnsupported),
            "engine: layer 0: the model does not forecast the layer's modules, as whole-layer "
            "caching would have it; the layer runs dense");
}

}  // namespace
}  // namespace flashomni::test
