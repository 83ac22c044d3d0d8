#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

namespace flashomni::cli {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// P(|T| <= t): the finite series for whole degrees of freedom, Abramowitz and Stegun 26.7.3-4.
double student_t_within(double t, int degrees) {
  const double angle = std::atan(t / std::sqrt(degrees));
  const double cosine = std::cos(angle);
  const bool odd = degrees % 2 == 1;
  double term = odd ? cosine : 1, sum = degrees == 1 ? 0 : term;
  for (int k = odd ? 2 : 1; k <= degrees - 3; k += 2) {
    term *= cosine * cosine * k / (k + 1);
    sum += term;
  }
  return odd ? 2 / std::numbers::pi * (angle + std::sin(angle) * sum) : std::sin(angle) * sum;
}

}  // namespace

double student_t_975(int degrees) {
  double low = 0, high = 13;  // 12.7 for one degree
  while (high - low > 1e-12) {
    const double middle = (low + high) / 2;
    (student_t_within(middle, degrees) < 0.95 ? low : high) = middle;
  }
  return high;
}

Estimate mean_interval(const std::vector<double>& values) {
  const int count = static_cast<int>(values.size());
  if (count == 0) return {kNone, kNone, kNone, kNone, 0};
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  const double min = std::ranges::min(values);
  if (count == 1) return {mean, kNone, kNone, min, 1};
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double margin = student_t_975(count - 1) * std::sqrt(squares / (count - 1) / count);
  return {mean, mean - margin, mean + margin, min, count};
}

Estimate share_interval(int right, int of) {
  if (of == 0) return {kNone, kNone, kNone, kNone, 0};
  constexpr double kZ = 1.959963984540054;  // the normal distribution's 97.5 %
  const double share = static_cast<double>(right) / of, z2 = kZ * kZ / of;
  const double centre = (share + z2 / 2) / (1 + z2);
  const double margin = kZ / (1 + z2) * std::sqrt(share * (1 - share) / of + z2 / (4 * of));
  return {share, centre - margin, centre + margin, 0, of};
}

nlohmann::ordered_json to_json(const Estimate& estimate) {
  const auto number = [](double value) {
    return std::isnan(value) ? nlohmann::ordered_json() : nlohmann::ordered_json(value);
  };
  return {{"mean", number(estimate.mean)},
          {"low", number(estimate.low)},
          {"high", number(estimate.high)},
          {"min", number(estimate.min)},
          {"count", estimate.count}};
}

}  // namespace flashomni::cli
