#include "gmock/gmock.h"

#include "flashomni/engine.h"

#include "errors.h"

namespace flashomni {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::ElementsAreArray;

std::vector<int> full_steps(int num_steps, int warmup, int interval) {
  const auto kinds = classify_steps(num_steps, warmup, interval);
  std::vector<int> full;
  for (int step = 0; step < num_steps; ++step) {
    if (kinds[step] != StepKind::kDispatch) full.push_back(step);
  }
  return full;
}

std::vector<int> first_and_then(int num_first, std::vector<int> others) {
  std::vector<int> steps(num_first);
  for (int step = 0; step < num_first; ++step) steps[step] = step;
  steps.insert(steps.end(), others.begin(), others.end());
  return steps;
}

// The sequences of the published classifier.
TEST(Schedule, ListsTheFullStepsOfThePublishedSettings) {
  EXPECT_THAT(full_steps(50, 8, 5),
              ElementsAreArray(first_and_then(8, {12, 17, 22, 27, 32, 37, 42, 47, 49})));
  EXPECT_THAT(full_steps(50, 9, 6),
              ElementsAreArray(first_and_then(9, {14, 20, 26, 32, 38, 44, 49})));
  EXPECT_THAT(full_steps(50, 8, 6),
              ElementsAreArray(first_and_then(8, {13, 19, 25, 31, 37, 43, 49})));
}

TEST(Schedule, MakesSymbolsFromTheLastWarmupStepOn) {
  using enum StepKind;
  EXPECT_THAT(classify_steps(10, 3, 3),
              ElementsAre(kDense, kDense, kUpdate, kDispatch, kDispatch, kUpdate, kDispatch,
                          kDispatch, kUpdate, kDense));
}

TEST(Schedule, EndsDenseBecauseNothingFollows) {
  using enum StepKind;
  EXPECT_THAT(classify_steps(4, 1, 2), ElementsAre(kUpdate, kDispatch, kUpdate, kDense));
  EXPECT_THAT(classify_steps(5, 1, 2),  // step 4 would be an update
              ElementsAre(kUpdate, kDispatch, kUpdate, kDispatch, kDense));
  EXPECT_THAT(classify_steps(1, 1, 5), ElementsAre(kDense));
}

TEST(Schedule, IsDenseThroughoutAWarmupThatCoversAllSteps) {
  EXPECT_THAT(classify_steps(3, 7, 2), testing::Each(StepKind::kDense));
}

TEST(Schedule, NeverDispatchesAtIntervalOne) {
  using enum StepKind;
  EXPECT_THAT(classify_steps(4, 2, 1), ElementsAre(kDense, kUpdate, kUpdate, kDense));
}

TEST(Schedule, RejectsValuesBelowOne) {
  EXPECT_EQ(error_of([] { classify_steps(0, 1, 1); }),
            "classify_steps: num_steps is 0, must be at least 1");
  EXPECT_EQ(error_of([] { classify_steps(5, 0, 1); }),
            "classify_steps: warmup is 0, must be at least 1");
  EXPECT_EQ(error_of([] { classify_steps(5, 1, 0); }),
            "classify_steps: interval is 0, must be at least 1");
}

TEST(Schedule, NamesItsKinds) {
  EXPECT_EQ(step_kind_name(StepKind::kDense), "dense");
  EXPECT_EQ(step_kind_name(StepKind::kUpdate), "update");
  EXPECT_EQ(step_kind_name(StepKind::kDispatch), "dispatch");
}

// F(7) = 8, F(13) = 10, F(19) = 16, asked for at step 22: the numbers of the specification.
TEST(Forecast, ExtrapolatesWithTheTaylorConvention) {
  const double terms[] = {16, 1, 1.0 / 9};
  const double expected[] = {16, 19, 19.5};
  for (int order = 0; order <= 2; ++order) {
    const auto c = forecast_coefficients(ForecastKind::kTaylor, order, 3, 6);
    ASSERT_EQ(c.size(), order + 1u);
    double sum = 0;
    for (int o = 0; o <= order; ++o) sum += c[o] * terms[o];
    EXPECT_DOUBLE_EQ(sum, expected[order]);
  }
}

// F(t) = t^2 at 7, 13, 19; at 22 it is 484. Taylor's convention gives 466.
TEST(Forecast, NewtonIsExactForQuadratics) {
  const double first = (361 - 169) / 6.0, before = (169 - 49) / 6.0;
  const double terms[] = {361, first, (first - before) / 6};
  const auto forecast = [&](ForecastKind kind) {
    const auto c = forecast_coefficients(kind, 2, 3, 6);
    return c[0] * terms[0] + c[1] * terms[1] + c[2] * terms[2];
  };
  EXPECT_DOUBLE_EQ(forecast(ForecastKind::kNewton), 484);
  EXPECT_DOUBLE_EQ(forecast(ForecastKind::kTaylor), 466);
}

TEST(Forecast, RejectsAnOrderItCannotKeep) {
  EXPECT_EQ(error_of([] { forecast_coefficients(ForecastKind::kTaylor, 3, 1, 1); }),
            "forecast_coefficients: order is 3, must be 0 to 2");
}

}  // namespace
}  // namespace flashomni
