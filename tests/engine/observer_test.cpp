// What an attention observer is shown, against the definition of attention.
#include <cmath>

#include "gmock/gmock.h"

#include "oracle.h"

namespace flashomni::test {
namespace {

// softmax(q k^T / sqrt(head_dim)) v of one row of one head, in fp64.
std::vector<double> attended_row(const AttendedLayer& seen, int token, int head) {
  const auto at = [&](ConstTensorView view, int row, int d) -> double {
    return view.as<float>()[(row * kHeads + head) * kHeadDim + d];
  };
  std::vector<double> out(kHeadDim);
  double total = 0;
  for (int other = 0; other < kSeqLen; ++other) {
    double logit = 0;
    for (int d = 0; d < kHeadDim; ++d) logit += at(seen.q, token, d) * at(seen.k, other, d);
    const double weight = std::exp(logit / std::sqrt(kHeadDim));
    total += weight;
    for (int d = 0; d < kHeadDim; ++d) out[d] += weight * at(seen.v, other, d);
  }
  for (double& value : out) value /= total;
  return out;
}

double worst_difference(const AttendedLayer& seen) {
  double worst = 0;
  for (int token = 0; token < kSeqLen; ++token) {
    for (int head = 0; head < kHeads; ++head) {
      const std::vector<double> expected = attended_row(seen, token, head);
      for (int d = 0; d < kHeadDim; ++d) {
        const double actual = seen.o.as<float>()[(token * kHeads + head) * kHeadDim + d];
        const double difference = std::abs(actual - expected[d]);
        if (!(difference <= worst)) worst = difference;  // so that NaN stays
      }
    }
  }
  return worst;
}

struct Watched {
  int step, branch, layer;
  LayerAction action;
  bool operator==(const Watched&) const = default;
};

TEST(AttentionObserver, SeesWhatAttentionReadAndWroteInTheOrderOfTheLayers) {
  const auto backend = make_backend("reference");
  EngineOptions options{.warmup = 1, .interval = 2, .layer_cache = 0};
  options.block_q = options.block_kv = kBlock;
  // Layers are cached whole at the first update, step 0: step 1 forecasts, step 2 is full.
  Engine engine(*backend, options, make_policy("taylorseer", {}));
  ToyModel model(*backend);
  std::vector<Watched> seen, expected;
  engine.set_attention_observer([&](const AttendedLayer& layer) {
    seen.push_back({layer.step, layer.branch, layer.layer, layer.action});
    // Sums of fp32 over kSeqLen weights, of values near 2.
    EXPECT_LT(worst_difference(layer), 2 * kSeqLen * 0x1p-22);
  });
  engine.begin(toy_shape(), 3, 2);
  for (int step = 0; step < 3; ++step) {
    for (int branch : {0, 1}) {
      engine.begin_step(step, branch);
      for (int layer = 0; layer < kLayers; ++layer) {
        model.run(engine, layer, step, branch);
        if (step != 1) expected.push_back({step, branch, layer, engine.layer_action(layer)});
      }
    }
  }
  EXPECT_EQ(seen.size(), 2u * 2 * kLayers);
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(seen.front().action, LayerAction::kUpdate);

  engine.set_attention_observer({});
  engine.begin(toy_shape(), 1, 1);
  engine.begin_step(0, 0);
  model.run(engine, 0, 0, 0);
  EXPECT_EQ(seen, expected) << "nobody watches any more";
}

}  // namespace
}  // namespace flashomni::test
