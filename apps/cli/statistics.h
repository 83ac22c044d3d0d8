// statistics.h -- means and shares with 95 % intervals.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

namespace flashomni::cli {

// low and high bound the 95 % interval; NaN where there is too little to say so.
struct Estimate {
  double mean = 0, low = 0, high = 0, min = 0;
  int count = 0;
};

// Mean with Student's t interval of the mean (NaN for one value).
Estimate mean_interval(const std::vector<double>& values);
// right / of with Wilson's score interval; `min` is unused.
Estimate share_interval(int right, int of);

// The number that a Student t variable of `degrees` >= 1 exceeds with probability 0.025.
double student_t_975(int degrees);

// Spearman's: 1 if both rise together, -1 if one falls as the other rises; ties share their mean
// rank. NaN if either is constant.
double rank_correlation(const std::vector<double>& a, const std::vector<double>& b);

// {"mean", "low", "high", "min", "count"}; NaN becomes null.
nlohmann::ordered_json to_json(const Estimate& estimate);

}  // namespace flashomni::cli
