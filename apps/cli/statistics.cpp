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

// Of each value among all, from 1.
std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<double> ranks;
  for (const double value : values) {
    const auto below = std::ranges::count_if(values, [&](double other) { return other < value; });
    const auto same = std::ranges::count(values, value);
    ranks.push_back(static_cast<double>(below) + (static_cast<double>(same) + 1) / 2);
  }
  return ranks;
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

double rank_correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const std::vector<double> ranks_a = ranks(a), ranks_b = ranks(b);
  const double mean = (static_cast<double>(a.size()) + 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += (ranks_a[i] - mean) * (ranks_b[i] - mean);
    aa += (ranks_a[i] - mean) * (ranks_a[i] - mean);
    bb += (ranks_b[i] - mean) * (ranks_b[i] - mean);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : kNone;
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
