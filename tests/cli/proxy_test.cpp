// The proxy of `tune` against independent definitions, on small tensors and made-up runs.
#include "proxy.h"

#include <cmath>

#include "attention_trace.h"
#include "flashomni/policy.h"
#include "gmock/gmock.h"
#include "statistics.h"

namespace flashomni::cli {
namespace {

constexpr int kHeads = 2, kDim = 4, kBlock = 4, kSteps = 10;
const std::vector<Segment> kSegments = {{SegmentKind::kText, 3}, {SegmentKind::kImage, 10}};
constexpr int kTokens = 13;
const BlockGrid kGrid(kBlock, 1, kSegments);  // text 3; image 4, 4, 2

// A smooth number for each list of places: not the same twice.
float value(int a, int token, int head, int d) {
  return std::sin(1.7f * a + 0.9f * token + 2.3f * head + 1.1f * d * (token + 1));
}

Tensor make_tensor(int key) {
  Tensor tensor = Tensor::host(DType::kF32, {1, kTokens, kHeads, kDim});
  float* out = tensor.as<float>();
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      for (int d = 0; d < kDim; ++d) *out++ = value(key, t, h, d);
    }
  }
  return tensor;
}

TEST(BlockMasses, AreTheSoftmaxOfTheSampledRowsSummedOverKeyBlocks) {
  const Tensor q = make_tensor(1), k = make_tensor(2);
  for (const int stride : {1, 3}) {
    const std::vector<float> masses = block_masses(q, k, kGrid, kGrid, stride);
    ASSERT_EQ(masses.size(), kHeads * 4u * 4u);
    for (int head = 0; head < kHeads; ++head) {
      for (int i = 0; i < 4; ++i) {
        std::vector<double> expected(4);
        int rows = 0;
        for (int offset = 0; offset < kGrid.at(0, i).count; offset += stride, ++rows) {
          std::vector<double> weights(kTokens);
          double total = 0;
          for (int t = 0; t < kTokens; ++t) {
            double logit = 0;
            for (int d = 0; d < kDim; ++d) {
              logit +=
                  double(value(1, kGrid.at(0, i).start + offset, head, d)) * value(2, t, head, d);
            }
            total += weights[t] = std::exp(logit / 2);  // the root of kDim
          }
          for (int t = 0; t < kTokens; ++t) {
            expected[t < 3 ? 0 : 1 + (t - 3) / kBlock] += weights[t] / total;
          }
        }
        for (int j = 0; j < 4; ++j) {
          EXPECT_NEAR(masses[(head * 4 + i) * 4 + j], expected[j] / rows, 1e-5) << head << i << j;
        }
      }
    }
  }
}

// An output that moves on a curve, so that forecasts of orders 0, 1 and 2 all miss.
Tensor output_at(int step) {
  Tensor o = make_tensor(3);
  const Tensor drift = make_tensor(4);
  for (index_t i = 0; i < o.num_elements(); ++i) {
    o.as<float>()[i] += drift.as<float>()[i] * 0.02f * step * step * step / 10;
  }
  return o;
}

OutputProducts all_products() {
  OutputProducts products(kGrid, kHeads, kSteps, 1);
  for (int step = 0; step < kSteps; ++step) products.add(output_at(step));
  return products;
}

// The forecast as TaylorSeer writes it, of values at updates `interval` apart.
double taylor(const std::vector<double>& values, int interval, int order, int k) {
  const std::size_t n = values.size() - 1;
  double forecast = values[n];
  if (order >= 1 && n >= 1) forecast += k * (values[n] - values[n - 1]) / interval;
  if (order >= 2 && n >= 2) {
    const double second = values[n] - 2 * values[n - 1] + values[n - 2];
    forecast += k * k / 2.0 * second / (interval * interval);
  }
  return forecast;
}

TEST(Forecast, DistanceIsThatOfTheTaylorSeriesToTheTrueOutput) {
  const OutputProducts products = all_products();
  for (const int order : {0, 1, 2}) {
    for (const std::vector<int>& updates : {std::vector{3}, {1, 4}, {0, 3, 6}}) {
      const int step = updates.back() + 2;
      EngineOptions options;
      options.order = order;
      options.interval = 3;
      const std::vector<double> weights = forecast_weights(options, updates, step);
      for (int head = 0; head < kHeads; ++head) {
        for (int i = 0; i < 4; ++i) {
          double expected = 0;
          for (int t = kGrid.at(0, i).start; t < kGrid.at(0, i).start + kGrid.at(0, i).count; ++t) {
            for (int d = 0; d < kDim; ++d) {
              const auto at = [&](int s) -> double {
                return output_at(s).as<float>()[(t * kHeads + head) * kDim + d];
              };
              std::vector<double> values;
              for (const int update : updates) values.push_back(at(update));
              expected += std::pow(taylor(values, 3, order, 2) - at(step), 2);
            }
          }
          EXPECT_GT(expected, 1e-5);
          EXPECT_NEAR(products.squared_distance(head, i, updates, weights, step), expected,
                      1e-4 * expected + 1e-6);
        }
      }
    }
  }
}

// One layer whose masses are 1 / 4 in every block, and what policies select in it at every step.
RunTrace made_up_run(const std::vector<SparseSymbols>& policies) {
  RunTrace run{.num_steps = kSteps,
               .head_dim = kDim,
               .stride = 1,
               .layers_of_model = 1,
               .layers_seen = 1,
               .macs = 1e6,
               .macs_outside_layers = 2e5,
               .policies = {},
               .layers = {}};
  run.policies.resize(policies.size());
  LayerTrace layer{.macs = 8e5, .output = all_products(), .masses = {}, .choices = {}};
  layer.masses.assign(kSteps, std::vector<float>(kHeads * 4 * 4, .25f));
  std::vector<Choice> choices;
  for (const SparseSymbols& symbols : policies) choices.push_back({symbols, {}});
  layer.choices.assign(kSteps, choices);
  run.layers.push_back(layer);
  return run;
}

EngineOptions schedule(int warmup, int interval) {
  EngineOptions options;
  options.warmup = warmup;
  options.interval = interval;
  options.layer_cache = 0;
  return options;
}

TEST(Judge, LosesTheSoftmaxThatLiveRowsMiss) {
  const SparseSymbols all(kGrid, kGrid, kHeads);
  SparseSymbols one = all, two = all;
  for (int head = 0; head < kHeads; ++head) {
    for (int i = 0; i < 4; ++i) {
      one.skip(0, head, i, 2);
      two.skip(0, head, i, 2);
      two.skip(0, head, i, 3);
    }
  }
  const RunTrace run = made_up_run({all, one, two});
  const EngineOptions options = schedule(2, 4);
  const auto kinds = classify_steps(kSteps, 2, 4);
  const double dispatches = std::ranges::count(kinds, StepKind::kDispatch);
  const Proxy none = judge(run, 0, options), some = judge(run, 1, options),
              more = judge(run, 2, options);
  EXPECT_NEAR(none.recall, 1, 1e-6);
  EXPECT_NEAR(none.loss, 0, 1e-6);
  EXPECT_NEAR(none.macs_ratio, 1, 1e-12);
  EXPECT_TRUE(std::isnan(none.forecast_error)) << "nothing is cached";
  EXPECT_NEAR(some.recall, .75, 1e-6);
  EXPECT_NEAR(some.loss, 2 * .25 * std::sqrt(dispatches / kSteps), 1e-6);
  EXPECT_NEAR(more.recall, .5, 1e-6);
  EXPECT_GT(more.loss, some.loss);
  EXPECT_LT(more.macs_ratio, some.macs_ratio);
  // A pair of tokens is two products of kDim; block 2 has 4 tokens.
  EXPECT_NEAR(some.macs_ratio, 1 - dispatches / kSteps * 2 * kDim * kHeads * kTokens * 4 / 1e6,
              1e-9);
}

SparseSymbols nothing_live() {
  SparseSymbols symbols(kGrid, kGrid, kHeads);
  for (int head = 0; head < kHeads; ++head) {
    for (int i = 0; i < 4; ++i) symbols.cache(0, head, i);
  }
  return symbols;
}

TEST(Judge, ForecastsWholeLayersFromTheFirstUpdateOn) {
  const RunTrace run = made_up_run({nothing_live()});
  const EngineOptions options = schedule(2, 3);
  const auto kinds = classify_steps(kSteps, 2, 3);
  double squares = 0;
  std::vector<int> updates;
  int dispatches = 0;
  for (int step = 0; step < kSteps; ++step) {
    if (kinds[step] == StepKind::kUpdate) updates.push_back(step);
    if (kinds[step] != StepKind::kDispatch) continue;
    ++dispatches;
    double lost = 0, total = 0;
    for (index_t n = 0; n < index_t{kTokens} * kHeads * kDim; ++n) {
      const auto at = [&](int s) -> double { return output_at(s).as<float>()[n]; };
      std::vector<double> values;
      for (const int update : updates) values.push_back(at(update));
      lost += std::pow(taylor(values, 3, 1, step - updates.back()) - at(step), 2);
      total += std::pow(at(step), 2);
    }
    squares += lost / total;
  }
  const Proxy proxy = judge(run, 0, options);
  EXPECT_TRUE(std::isnan(proxy.recall)) << "nothing is live";
  EXPECT_NEAR(proxy.forecast_error, std::sqrt(squares / dispatches), 1e-4);
  EXPECT_NEAR(proxy.loss, std::sqrt(squares / kSteps), 1e-4);
  EXPECT_NEAR(proxy.macs_ratio, 1 - .8 * dispatches / kSteps, 1e-9)
      << "a whole layer costs nothing";
  EXPECT_GT(judge(run, 0, schedule(2, 5)).loss, proxy.loss) << "longer forecasts are worse";
}

TEST(Judge, StartsDifferencesAgainWhereOtherHeadsAreCached) {
  // Head 0 of query block 1, or head 1, by turns: no difference is ever valid, as of order 0.
  SparseSymbols a(kGrid, kGrid, kHeads), b = a;
  a.cache(0, 0, 1);
  b.cache(0, 1, 1);
  RunTrace run = made_up_run({a});
  EngineOptions first_order = schedule(2, 2), order_zero = first_order;
  order_zero.order = 0;
  EXPECT_NE(judge(run, 0, first_order).loss, judge(run, 0, order_zero).loss);
  bool odd = false;
  const auto kinds = classify_steps(kSteps, 2, 2);
  for (int step = 0; step < kSteps; ++step) {
    if (kinds[step] != StepKind::kUpdate) continue;
    run.layers[0].choices[step][0].dispatch = odd ? b : a;
    odd = !odd;
  }
  EXPECT_DOUBLE_EQ(judge(run, 0, first_order).loss, judge(run, 0, order_zero).loss);
}

TEST(RankCorrelation, ComparesOrderAlone) {
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3}, {10, 200, 3000}), 1);
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3}, {5, 0, -1}), -1);
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3, 4}, {1, 3, 2, 4}), .8);
  EXPECT_TRUE(std::isnan(rank_correlation({1, 2, 3}, {7, 7, 7})));
}

}  // namespace
}  // namespace flashomni::cli
