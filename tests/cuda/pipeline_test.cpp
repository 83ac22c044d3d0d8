// Pictures of the shipped model drawn on the GPU.
#include "../pipeline/golden.h"
#include "flashomni/image_metrics.h"
#include "flashomni/policy.h"
#include "gpu.h"

namespace flashomni {
namespace {

using test::golden_picture;
using test::kPenguin;

class GpuPipeline : public test::GpuTest {
 protected:
  // kPenguin as recorded, 20 steps from the recorded noise.
  static GenerateResult draw(Pipeline& pipeline, const EngineOptions& options,
                             const std::string& policy) {
    Engine engine(pipeline.backend(), options, make_policy(policy, {}));
    return pipeline.generate({.prompt = kPenguin.prompt,
                              .width = kPenguin.width,
                              .height = kPenguin.height,
                              .seed = kPenguin.seed},
                             engine, {}, test::golden().tensor("p0.noise"));
  }
};

TEST_F(GpuPipeline, DrawsTheRecordedPicture) {
  Pipeline pipeline = Pipeline::load(test::model_directory(), std::move(backend), DType::kBF16);
  const GenerateResult result = draw(pipeline, {}, "dense");
  EXPECT_GE(psnr_db(result.picture, golden_picture(kPenguin)), 45);
  double seconds = 0;
  for (const OpTime& op : result.op_times) seconds += op.seconds;
  EXPECT_GT(seconds, 0);
  EXPECT_LE(seconds, result.seconds_denoise);
}

// The same schedule, policy and precision on a processor: symbols and forecasts agree but for
// scores that rounding moves past a threshold.
TEST_F(GpuPipeline, DrawsWhatTheProcessorDraws) {
  Pipeline gpu = Pipeline::load(test::model_directory(), std::move(backend), DType::kBF16);
  Pipeline cpu = Pipeline::load(test::model_directory(), make_backend("cpu"), DType::kBF16);
  for (const double layer_cache : {0.0, 0.5}) {
    const EngineOptions options{.warmup = 4, .interval = 3, .order = 1, .layer_cache = layer_cache};
    const GenerateResult on_gpu = draw(gpu, options, "flashomni");
    const GenerateResult on_cpu = draw(cpu, options, "flashomni");
    EXPECT_GE(psnr_db(on_gpu.picture, on_cpu.picture), 35) << layer_cache;
    EXPECT_NEAR(on_gpu.macs_done / on_cpu.macs_done, 1, 0.02) << layer_cache;
    EXPECT_EQ(on_gpu.sparsity.layers_cached, on_cpu.sparsity.layers_cached) << layer_cache;
    EXPECT_TRUE(on_gpu.fallbacks.empty());
  }
}

}  // namespace
}  // namespace flashomni
