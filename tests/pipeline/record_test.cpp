// A recorded generation: what the record says, its file, its replay, and files that are none.
#include "flashomni/record.h"

#include <fstream>
#include <functional>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "errors.h"
#include "golden.h"

namespace flashomni {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Pipeline load(int num_threads = 2, DType dtype = DType::kF32) {
  return Pipeline::load(test::model_directory(), make_backend("cpu", {.num_threads = num_threads}),
                        dtype);
}

// 64 image tokens, two branches; steps are dense, update, dispatch x 2, update, dispatch, dense.
GenerateRequest small_request() {
  GenerateRequest request;
  request.prompt = "a fox and an \"apple\" in flat style";
  request.width = request.height = 32;
  request.steps = 7;
  request.seed = 7;
  return request;
}

EngineOptions small_engine() {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  options.block_q = options.block_kv = 8;
  return options;
}

RunRecord record(Pipeline& pipeline, std::unique_ptr<SparsityPolicy> policy,
                 const EngineOptions& options = small_engine(),
                 const GenerateRequest& request = small_request()) {
  Engine engine(pipeline.backend(), options, std::move(policy));
  RunRecord run;
  pipeline.generate(request, engine, {}, {}, &run);
  return run;
}

std::unique_ptr<SparsityPolicy> flashomni_policy() {
  return make_policy("flashomni", {{"tau-q", "0.6"}, {"tau-kv", "0.2"}});
}

const RunRecord& sample() {
  static const RunRecord run = [] {
    Pipeline pipeline = load();
    return record(pipeline, flashomni_policy());
  }();
  return run;
}

class RunFile : public testing::Test {
 protected:
  RunFile()
      : path_(fs::path(testing::TempDir()) /
              (std::string("run_") +
               testing::UnitTest::GetInstance()->current_test_info()->name())) {}
  ~RunFile() override { fs::remove(path_); }

  std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_bytes(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  fs::path path_;
};

TEST(Record, HoldsEveryLayerOfEveryStep) {
  Pipeline pipeline = load();
  Engine engine(pipeline.backend(), small_engine(), flashomni_policy());
  RunRecord run;
  const GenerateResult result = pipeline.generate(small_request(), engine, {}, {}, &run);
  EXPECT_EQ(run.picture.rgb, result.picture.rgb);
  EXPECT_EQ(run.steps.size(), 7u);
  ASSERT_EQ(run.layers.size(), 7u * 2 * 12);
  EXPECT_EQ(run.symbols.size(), 2u * 2 * 12);  // two updates
  std::vector<LayerAction> actions;
  for (int step = 0; step < 7; ++step) actions.push_back(run.layer(step, 1, 5).action);
  using enum LayerAction;
  EXPECT_THAT(actions, ElementsAre(kDense, kUpdate, kSparse, kSparse, kUpdate, kSparse, kDense));
  double macs = 0, density = 0;
  for (const LayerRun& layer : run.layers) {
    macs += layer.macs;
    density += attention_density(run, layer);
  }
  EXPECT_GT(macs, 0.9 * result.macs_done);  // embedders and the last projection are no layer's
  EXPECT_LT(macs, result.macs_done);
  // Every layer has the same token pairs, so the plain mean is the weighted one.
  EXPECT_NEAR(1 - density / static_cast<double>(run.layers.size()),
              result.sparsity.attention_sparsity, 1e-9);
  EXPECT_GT(result.sparsity.attention_sparsity, 0.05);
  for (int layer = 0; layer < 12; ++layer) {
    for (int branch = 0; branch < 2; ++branch) {
      const LayerRun& last = run.layer(5, branch, layer);
      EXPECT_EQ(run.symbols[last.symbols], engine.symbols(layer, branch));
      EXPECT_EQ(last.symbols, run.layer(4, branch, layer).symbols);
      EXPECT_LT(run.layer(3, branch, layer).symbols, last.symbols);
    }
  }
}

TEST(Record, ChangesNothingOfTheGeneration) {
  Pipeline pipeline = load();
  Engine engine(pipeline.backend(), small_engine(), flashomni_policy());
  EXPECT_EQ(pipeline.generate(small_request(), engine).picture.rgb, sample().picture.rgb);
}

TEST_F(RunFile, IsReadBackWhole) {
  RunRecord run = sample();
  run.settings.preset = "balanced";
  run.settings.engine.token_order = TokenOrder::kTile;
  run.settings.policy_options = {{"tau-q", "0.6"}};
  run.fallbacks = {{3, "why"}};
  run.warnings = {"an unknown word"};
  run.dense_picture = run.picture;
  run.dense_step_seconds.assign(7, 0.5f);
  write_run(path_, run);
  const RunRecord read = read_run(path_);
  EXPECT_THAT(run_differences(run, read), IsEmpty());
  EXPECT_EQ(read.layers, run.layers);
  EXPECT_EQ(read.symbols, run.symbols);
  EXPECT_EQ(read.token_order, run.token_order);
  EXPECT_EQ(read.dense_picture.rgb, run.picture.rgb);
  EXPECT_EQ(read.dense_step_seconds, run.dense_step_seconds);
  EXPECT_EQ(read.settings.device, run.settings.device);
  EXPECT_EQ(read.segments, run.segments);
  EXPECT_EQ(read.num_double_layers, 4);
  EXPECT_EQ(read.macs_done, run.macs_done);
  EXPECT_EQ(read.sparsity.cached_fraction, run.sparsity.cached_fraction);
  EXPECT_EQ(read.op_times.size(), run.op_times.size());
  EXPECT_EQ(read.fallbacks.at(0).reason, "why");
  EXPECT_EQ(read.warnings, run.warnings);
  for (std::size_t i = 0; i < run.steps.size(); ++i) {
    EXPECT_EQ(read.steps[i].kind, run.steps[i].kind);
    EXPECT_NEAR(read.steps[i].seconds, run.steps[i].seconds, 1e-6);
  }
  const std::string first = bytes();
  write_run(path_, read);
  EXPECT_EQ(bytes().size(), first.size());
  EXPECT_THAT(error_of([&] { write_run(path_, RunRecord()); }), HasSubstr("0 steps"));
  EXPECT_EQ(bytes().size(), first.size());  // a failure leaves the file that was there
}

struct ReplayCase {
  const char* name;
  double layer_cache;
  const char* policy;
  PolicyOptions options;
};

class Replay : public testing::TestWithParam<ReplayCase> {};

TEST_P(Replay, RepeatsThePictureBitForBitWithAnyNumberOfThreads) {
  EngineOptions options = small_engine();
  options.layer_cache = GetParam().layer_cache;
  RunRecord run;
  {
    Pipeline pipeline = load(2);
    run = record(pipeline, make_policy(GetParam().policy, GetParam().options), options);
  }
  run.settings.policy_options = GetParam().options;
  const fs::path path = fs::path(testing::TempDir()) / "replayed_run";
  write_run(path, run);
  const RunRecord read = read_run(path);
  fs::remove(path);
  for (const int threads : {1, 2}) {
    Pipeline pipeline = load(threads);
    check_replay(read, pipeline, read.request);
    RunRecord again =
        record(pipeline, make_replay_policy(read), read.settings.engine, read.request);
    again.settings.policy_options = GetParam().options;
    EXPECT_THAT(run_differences(read, again), IsEmpty()) << threads;
    EXPECT_EQ(again.settings.policy, GetParam().policy);
    EXPECT_EQ(again.sparsity.layers_cached, run.sparsity.layers_cached);
    EXPECT_EQ(again.sparsity.reused_passes, run.sparsity.reused_passes);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Runs, Replay,
    testing::Values(ReplayCase{"Skipping", 0, "flashomni", {{"tau-q", "0"}, {"tau-kv", "0.3"}}},
                    ReplayCase{"Both", 0, "flashomni", {{"tau-q", "0.6"}, {"tau-kv", "0.2"}}},
                    ReplayCase{"SomeLayersWhole", 0.6, "flashomni", {{"tau-q", "0.6"}}},
                    ReplayCase{"EveryLayerWhole", 0, "layer-cache", {}},
                    ReplayCase{"UpdatesThatSkip", 0, "topk+fora", {{"keep", "0.4"}}},
                    ReplayCase{"AllAttention", 0, "pab", {}},
                    ReplayCase{"Heads", 0, "head-share", {{"head-change", "0.2"}}},
                    ReplayCase{"Steps", 0, "first-block", {{"reuse-below", "0.5"}}},
                    ReplayCase{"Dense", 0, "dense", {}}),
    [](const auto& info) { return info.param.name; });

TEST(ReplayPolicy, FollowsTheRecordAndNotThePolicy) {
  RunRecord changed = sample();
  for (SparseSymbols& symbols : changed.symbols) symbols.set_all_live();
  Pipeline pipeline = load();
  const RunRecord again = record(pipeline, make_replay_policy(changed));
  EXPECT_EQ(again.sparsity.attention_sparsity, 0);
  EXPECT_THAT(run_differences(changed, again), ElementsAre(HasSubstr("the picture is another")));
}

TEST(ReplayPolicy, NeedsSymbolsThatFit) {
  const auto policy = make_replay_policy(sample());
  SparseSymbols symbols = sample().symbols.front();
  symbols.set_all_live();
  policy->select({.layer = 2, .branch = 1, .step = 4}, symbols);
  EXPECT_EQ(symbols, sample().symbols[sample().layer(4, 1, 2).symbols]);
  EXPECT_THAT(error_of([&] { policy->select({.layer = 2, .step = 3}, symbols); }),
              HasSubstr("no symbols made at step 3, branch 0, layer 2"));
  EXPECT_THAT(error_of([&] { policy->select({.layer = 12, .step = 4}, symbols); }),
              HasSubstr("no symbols made at step 4"));
  SparseSymbols fewer(symbols.q_grid(), symbols.kv_grid(), 3);
  EXPECT_THAT(error_of([&] { policy->select({.step = 4}, fewer); }),
              HasSubstr("4 heads and 12 query blocks, the generation 3 and 12"));
}

TEST(CheckReplay, NamesWhatDoesNotFit) {
  Pipeline pipeline = load();
  const auto error = [&](auto change) {
    GenerateRequest request = small_request();
    change(request);
    return error_of([&] { check_replay(sample(), pipeline, request); });
  };
  EXPECT_THAT(error([](GenerateRequest& r) { r.width = 64; }),
              HasSubstr("64 x 32 pixels, recorded was 32 x 32"));
  EXPECT_THAT(error([](GenerateRequest& r) { r.steps = 8; }),
              HasSubstr("steps is 8, recorded was 7"));
  EXPECT_THAT(error([](GenerateRequest& r) { r.cfg = 1; }), HasSubstr("cfg 1 takes 1 branches"));
  RunRecord other = sample();
  other.num_heads = 24;
  EXPECT_THAT(error_of([&] { check_replay(other, pipeline, small_request()); }),
              HasSubstr("the model has 12 layers of 4 heads, recorded were 12 of 24"));
  EXPECT_NO_THROW(check_replay(sample(), pipeline, small_request()));
}

TEST(RunDifferences, NamesEachValueTheFirstDecisionAndThePicture) {
  RunRecord other = sample();
  other.request.prompt = "a bat";
  other.request.seed = 8;
  other.settings.engine.order = 2;
  other.settings.policy_options["tau-q"] = "0.7";
  other.symbols[sample().layer(4, 1, 2).symbols].set_all_live();
  other.picture.rgb[0] ^= 4;
  EXPECT_THAT(
      run_differences(sample(), other),
      ElementsAre("the prompt is \"a bat\", recorded was \"a fox and an \"apple\" in flat style\"",
                  "the seed is 8, recorded was 7", "order is 2, recorded was 1",
                  "tau-q is \"0.7\", recorded was \"\"",
                  "step 4, branch 1, layer 2 had other symbols",
                  HasSubstr("the picture is another: ")));
  other = sample();
  other.layers[20].action = LayerAction::kForecast;
  EXPECT_THAT(run_differences(sample(), other),
              ElementsAre("step 0, branch 1, layer 8 ran as forecast, recorded was dense"));
}

struct Damage {
  const char* tensor;  // or nullptr: the metadata's entry `key`
  const char* key;
  std::function<void(std::string&)> change;  // of its bytes
  const char* sentence;
};

void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

std::function<void(std::string&)> put(std::size_t at, char byte) {
  return [=](std::string& bytes) { bytes[at] = byte; };
}

std::function<void(std::string&)> swap(const char* from, const char* to) {
  return [=](std::string& text) { replace(text, from, to); };
}

TEST_F(RunFile, ThatIsMalformedIsRejectedWithASentence) {
  const Damage damages[] = {
      {nullptr, "format", swap("flashomni-run", "x"), "this is no recorded run"},
      {nullptr, "version", swap("1", "2"), "version is \"2\", this program reads 1"},
      {nullptr, "run", swap("{", "["), "the metadata's run is not a JSON object"},
      {nullptr, "run", swap("\"seed\"", "\"sead\""), "request.seed is missing"},
      {nullptr, "run", swap("\"width\":32", "\"width\":\"x\""), "request.width is \"x\""},
      {nullptr, "run", swap("\"width\":32", "\"width\":0"), "request.width is 0, must be 1 to"},
      {nullptr, "run", swap("\"steps\":7", "\"steps\":9"), "step.kind is u8 [7], must be u8 [9]"},
      {nullptr, "run", swap("taylor", "taylar"), "forecast is \"taylar\""},
      {nullptr, "run", swap("\"tokens\":64", "\"tokens\":65"), "65 image tokens"},
      {nullptr, "run", swap("\"tokens\":32", "\"tokens\":-1"), "a segment has -1 tokens"},
      {nullptr, "run", swap("\"block_q\":8", "\"block_q\":7"), "symbols.cache is i32"},
      {nullptr, "run", swap("\"tokens\":32", "\"tokens\":4000000"), "symbols.cache is i32"},
      {nullptr, "run", swap("\"tokens\":32", "\"tokens\":40000000"), "has 40000000 tokens"},
      {"step.kind", nullptr, put(0, 3), "step 0 is of the kind 3"},
      {"layer.action", nullptr, put(1, 5), "layer.action[1] is 5"},
      {"layer.symbols", nullptr, put(4 * 100 + 1, 1), "the file has 48 symbols"},
      {"layer.symbols", nullptr, [](std::string& b) { b.replace(4 * 24, 4, 4, '\xff'); },
       "layer.symbols[24] is -1"},
      {"symbols.cache", nullptr, put(0, '\x7f'), "symbols 0: "},
      {"tokens.order", nullptr, put(0, 1), "tokens.order holds 1 twice"},
      {"picture.png", nullptr, put(1, 'x'), "picture.png: decode_png"},
      {nullptr, "run", swap("\"height\":32", "\"height\":36"),
       "picture.png is 32 x 32 pixels, the request 32 x 36"},
  };
  write_run(path_, sample());
  const SafetensorsFile whole(path_);
  const fs::path damaged = path_.string() + ".damaged";
  for (const Damage& damage : damages) {
    std::map<std::string, std::string> metadata = whole.metadata();
    std::vector<NamedTensor> tensors;
    std::string bytes;
    for (const std::string& name : whole.names()) {
      ConstTensorView view = whole.tensor(name);
      if (damage.tensor && damage.tensor == name) {
        const auto* data = view.as<char>();
        bytes.assign(data, data + view.layout.num_elements() * size_in_bytes(view.dtype));
        damage.change(bytes);
        view.data = bytes.data();
      }
      tensors.push_back({name, view});
    }
    if (damage.key) damage.change(metadata[damage.key]);
    write_safetensors(damaged, tensors, metadata);
    SCOPED_TRACE(damage.sentence);
    const std::string error = error_of([&] { read_run(damaged); }, ErrorCode::kIo);
    EXPECT_THAT(error, HasSubstr(damage.sentence));
    EXPECT_THAT(error, HasSubstr(damaged.string()));
  }
  fs::remove(damaged);
}

TEST_F(RunFile, WithoutATensorIsRejected) {
  write_run(path_, sample());
  const SafetensorsFile whole(path_);
  const fs::path damaged = path_.string() + ".damaged";
  for (const std::string& missing : whole.names()) {
    if (missing == "layer.density") continue;  // follows from the symbols
    std::vector<NamedTensor> tensors;
    for (const std::string& name : whole.names()) {
      if (name != missing) tensors.push_back({name, whole.tensor(name)});
    }
    write_safetensors(damaged, tensors, whole.metadata());
    EXPECT_NE(error_of([&] { read_run(damaged); }, ErrorCode::kIo), "nothing was thrown")
        << missing;
  }
  fs::remove(damaged);
}

// Whatever byte is wrong, the file is read or rejected with an Error.
TEST_F(RunFile, WithAnyByteChangedIsReadOrRejected) {
  write_run(path_, sample());
  const std::string whole = bytes();
  int rejected = 0;
  for (std::size_t at = 0; at < whole.size(); at += 1 + whole.size() / 1000) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x15);
    write_bytes(changed);
    try {
      read_run(path_);
    } catch (const Error& error) {
      ++rejected;
      EXPECT_NE(error.what(), std::string());
    }
  }
  EXPECT_GT(rejected, 100);
  write_bytes(whole.substr(0, whole.size() - 1));
  EXPECT_NE(error_of([&] { read_run(path_); }, ErrorCode::kIo), "nothing was thrown");
}

}  // namespace
}  // namespace flashomni
