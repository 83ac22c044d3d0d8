// What a generation tells about itself, what it rejects, and that a dispatch step allocates
// nothing.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "allocation_counter.h"
#include "errors.h"
#include "golden.h"

namespace flashomni {
namespace {

using test::error_of;
using testing::HasSubstr;
namespace fs = std::filesystem;

Pipeline load() {
  return Pipeline::load(test::model_directory(), make_backend("cpu", {.num_threads = 2}),
                        DType::kF32);
}

GenerateRequest tiny_request(int steps) {
  GenerateRequest request;
  request.prompt = "a foxx";
  request.width = 48;
  request.height = 64;
  request.steps = steps;
  return request;
}

EngineOptions sparse_options() {
  EngineOptions options;
  options.warmup = 2;
  options.interval = 3;
  return options;
}

std::unique_ptr<SparsityPolicy> sparse_policy() {
  return make_policy("flashomni", {{"tau-q", "0.5"}, {"tau-kv", "0.1"}});
}

TEST(GenerateContract, ReportsWhatItDid) {
  Pipeline pipeline = load();
  Engine engine(pipeline.backend(), sparse_options(), sparse_policy());
  std::vector<StepProgress> seen;
  const GenerateResult result = pipeline.generate(
      tiny_request(9), engine, [&](const StepProgress& progress) { seen.push_back(progress); });

  ASSERT_EQ(seen.size(), 9u);
  ASSERT_EQ(result.steps.size(), 9u);
  int dispatch_steps = 0;
  double seconds = 0;
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(seen[i].step, i);
    EXPECT_EQ(seen[i].num_steps, 9);
    EXPECT_EQ(seen[i].kind, engine.step_kind(i));
    EXPECT_EQ(result.steps[i].seconds, seen[i].seconds);
    dispatch_steps += seen[i].kind == StepKind::kDispatch;
    seconds += seen[i].seconds;
  }
  EXPECT_GT(dispatch_steps, 0);
  EXPECT_EQ(result.sparsity.dispatch_steps, dispatch_steps);
  EXPECT_LE(seconds, result.seconds_denoise);
  EXPECT_LE(result.seconds_denoise, result.seconds_total);

  EXPECT_GT(result.sparsity.cached_fraction, 0);
  EXPECT_LT(result.macs_done, result.macs_total);
  ASSERT_EQ(result.op_times.size(), 7u);
  double macs = 0, op_seconds = 0;
  for (const OpTime& time : result.op_times) {
    EXPECT_GT(time.calls, 0) << time.op;
    macs += time.macs;
    op_seconds += time.seconds;
  }
  EXPECT_DOUBLE_EQ(macs, result.macs_done);
  EXPECT_GT(op_seconds, 0);
  EXPECT_LE(op_seconds, result.seconds_denoise);
  EXPECT_EQ(result.picture.width, 48);
  EXPECT_EQ(result.picture.height, 64);
  EXPECT_EQ(result.picture.rgb.size(), 48u * 64u * 3u);
  EXPECT_EQ(result.latents.view().layout.to_string(), "[192, 48]");
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_THAT(result.warnings[0], HasSubstr("\"foxx\"; nearest known: fox"));
}

// 192 image and 32 text tokens, 256 wide, 4 double blocks and 8 single ones: counted by hand.
TEST(GenerateContract, CountsTheMultiplyAddsOfADenseForwardPass) {
  Pipeline pipeline = load();
  GenerateRequest request = tiny_request(1);
  request.cfg = 1;
  Engine engine(pipeline.backend(), EngineOptions{}, make_policy("dense", {}));
  const GenerateResult result = pipeline.generate(request, engine);
  constexpr double kText = 32, kImage = 192, kTokens = kText + kImage, kDim = 256;
  constexpr double kBlock = 12 * kDim * kDim * kTokens + 2 * kTokens * kTokens * kDim;
  constexpr double kModulation = (4 * 12 + 8 * 3 + 2) * kDim * kDim;
  constexpr double kEmbedders = 6 * kDim * kDim;  // time, text and guidance, two layers each
  constexpr double kInOut = kImage * 48 * kDim * 2 + kText * kDim * kDim;
  EXPECT_DOUBLE_EQ(result.macs_done, 12 * kBlock + kModulation + kEmbedders + kInOut);
  EXPECT_DOUBLE_EQ(result.macs_total, result.macs_done);
}

TEST(GenerateContract, ADispatchStepAllocatesNothing) {
  Pipeline pipeline = load();
  Engine engine(pipeline.backend(), sparse_options(), sparse_policy());
  long of_kind[3] = {}, before = allocations;
  pipeline.generate(tiny_request(9), engine, [&](const StepProgress& progress) {
    of_kind[static_cast<int>(progress.kind)] += allocations - before;
    before = allocations;
  });
  EXPECT_GT(of_kind[static_cast<int>(StepKind::kUpdate)], 0) << "the count counts";
  EXPECT_EQ(of_kind[static_cast<int>(StepKind::kDispatch)], 0);
}

TEST(GenerateContract, RejectsRequestsItCannotMeet) {
  Pipeline pipeline = load();
  Engine engine(pipeline.backend(), EngineOptions{}, make_policy("dense", {}));
  const auto error = [&](auto change) {
    GenerateRequest request = tiny_request(1);
    change(request);
    return error_of([&] { pipeline.generate(request, engine); });
  };
  EXPECT_EQ(error([](GenerateRequest& r) { r.width = 50; }),
            "generate: the picture is 50 x 64 pixels, both must be multiples of 4");
  EXPECT_THAT(error([](GenerateRequest& r) { r.height = 0; }), HasSubstr("is 48 x 0 pixels"));
  EXPECT_THAT(error([](GenerateRequest& r) { r.height = -4; }), HasSubstr("is 48 x -4 pixels"));
  EXPECT_EQ(error([](GenerateRequest& r) { r.steps = 0; }),
            "generate: steps is 0, must be at least 1");
  EXPECT_THAT(error([](GenerateRequest& r) { r.cfg = NAN; }), HasSubstr("cfg is nan"));
  EXPECT_THAT(error_of([&] {
                GenerateRequest request = tiny_request(1);
                request.width = 3;
                pipeline.warm_up(request);
              }),
              HasSubstr("warm_up: the picture is 3 x 64"));
}

TEST(GenerateContract, RejectsAnotherEngineAndNoiseThatDoesNotFit) {
  Pipeline pipeline = load();
  const auto backend = make_backend("cpu");
  Engine foreign(*backend, EngineOptions{}, make_policy("dense", {}));
  EXPECT_THAT(error_of([&] { pipeline.generate(tiny_request(1), foreign); }),
              HasSubstr("another backend"));
  Engine engine(pipeline.backend(), EngineOptions{}, make_policy("dense", {}));
  const Tensor noise = Tensor::host_zeros(DType::kF32, {191, 48});
  EXPECT_EQ(error_of([&] { pipeline.generate(tiny_request(1), engine, {}, noise); }),
            "generate: noise is f32 [191, 48], must be contiguous f32 [192, 48] in host memory");
}

// A copy of the model's small files; the weights are links.
class BrokenModel : public testing::Test {
 protected:
  BrokenModel() {
    std::string pattern = (fs::temp_directory_path() / "flashomni_model_XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    for (const auto& entry : fs::recursive_directory_iterator(test::model_directory())) {
      const fs::path to = directory_ / fs::relative(entry.path(), test::model_directory());
      if (entry.is_directory()) fs::create_directory(to);
      if (entry.path().extension() == ".json") fs::copy_file(entry.path(), to);
      if (entry.path().extension() == ".safetensors") fs::create_symlink(entry.path(), to);
    }
  }
  ~BrokenModel() override { fs::remove_all(directory_); }

  void replace(const char* file, const std::string& from, const std::string& to) const {
    std::ifstream in(directory_ / file);
    std::string text(std::istreambuf_iterator<char>(in), {});
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream(directory_ / file) << text.replace(at, from.size(), to);
  }
  std::string load_error(ErrorCode code) const {
    return error_of(
        [&] { Pipeline::load(directory_, make_backend("cpu", {.num_threads = 1}), DType::kF32); },
        code);
  }

  fs::path directory_;
};

TEST_F(BrokenModel, LoadsBeforeItIsBroken) {
  const Pipeline pipeline = Pipeline::load(directory_, make_backend("cpu"), DType::kF32);
  EXPECT_EQ(pipeline.defaults().steps, 20);
  EXPECT_EQ(pipeline.defaults().cfg, 3.0);
  EXPECT_EQ(pipeline.defaults().guidance, 1.0);
  EXPECT_EQ(pipeline.defaults().width, 128);
  EXPECT_EQ(pipeline.config().num_single_layers, 8);
  EXPECT_EQ(pipeline.backend().name(), "cpu");
}

TEST_F(BrokenModel, SaysWhatIsMissing) {
  const fs::path gone = directory_ / "gone";
  EXPECT_EQ(
      error_of([&] { Pipeline::load(gone, make_backend("cpu"), DType::kF32); }, ErrorCode::kIo),
      "pipeline: there is no model directory " + gone.string());
  for (const char* file :
       {"model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors", "transformer/config.json"}) {
    fs::rename(directory_ / file, directory_ / "aside");
    EXPECT_THAT(load_error(ErrorCode::kIo), HasSubstr(file));
    fs::rename(directory_ / "aside", directory_ / file);
  }
  EXPECT_THAT(error_of([&] { Pipeline::load(directory_, nullptr, DType::kF32); }),
              HasSubstr("backend is missing"));
  EXPECT_THAT(error_of([&] { Pipeline::load(directory_, make_backend("cpu"), DType::kF16); }),
              HasSubstr("dtype is f16, must be f32 or bf16"));
}

TEST_F(BrokenModel, SaysWhichClassItDoesNotKnow) {
  replace("model_index.json", "FluxMiniPipeline", "FluxPipeline");
  EXPECT_THAT(load_error(ErrorCode::kUnsupported), HasSubstr("names the class FluxPipeline"));
}

TEST_F(BrokenModel, SaysWhichPartDoesNotFit) {
  replace("model_index.json", "\"patch\": 4", "\"patch\": 2");
  EXPECT_THAT(load_error(ErrorCode::kInvalidArgument), HasSubstr("a patch of 2 pixels needs 12"));
}

TEST_F(BrokenModel, SaysWhichValueIsOfTheWrongType) {
  replace("model_index.json", "\"width\": 128", "\"width\": \"wide\"");
  EXPECT_THAT(load_error(ErrorCode::kInvalidArgument), HasSubstr("width is \"wide\""));
}

TEST_F(BrokenModel, SaysThatAFileIsNoJson) {
  replace("scheduler/scheduler_config.json", "{", "");
  EXPECT_THAT(load_error(ErrorCode::kIo), HasSubstr("scheduler_config.json is not JSON"));
}

TEST_F(BrokenModel, SaysWhichSchedulerItDoesNotKnow) {
  replace("scheduler/scheduler_config.json", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler");
  EXPECT_THAT(load_error(ErrorCode::kUnsupported), HasSubstr("scheduler DDIMScheduler"));
}

TEST_F(BrokenModel, SaysWhichTensorHasTheWrongShape) {
  replace("text_encoder/config.json", "\"intermediate_size\": 1024", "\"intermediate_size\": 512");
  EXPECT_THAT(load_error(ErrorCode::kInvalidArgument),
              HasSubstr("layers.0.ff.net.0.proj.weight is bf16 [1024, 256], must be [512, 256]"));
}

}  // namespace
}  // namespace flashomni
