// scatter_plot.h -- points with error bars and their Pareto frontier as an SVG, light and dark.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace flashomni::cli {

struct PlotPoint {
  std::string label, group;  // a group has one colour
  double x = 0, y = 0, y_low = 0, y_high = 0;
};

struct PlotTitles {
  std::string title, x, y;
};

// Less x and more y is better: points that no other beats in both are joined and labelled; the
// others tell their label when pointed at.
std::string scatter_plot(const PlotTitles& titles, const std::vector<PlotPoint>& points);

// Indices of the points on the frontier, by rising x.
std::vector<int> pareto_frontier(const std::vector<PlotPoint>& points);

}  // namespace flashomni::cli
