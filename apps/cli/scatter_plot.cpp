#include "scatter_plot.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace flashomni::cli {
namespace {

constexpr double kWidth = 860, kHeight = 480, kLeft = 60, kRight = 190, kTop = 40, kBottom = 50;
constexpr int kTicks = 6;
// Okabe and Ito's palette: told apart by people who see few colours.
constexpr const char* kColors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                   "#e69f00", "#56b4e9", "#999999"};

std::string escape(const std::string& text) {
  std::string safe;
  for (const char character : text) {
    if (character == '&')
      safe += "&amp;";
    else if (character == '<')
      safe += "&lt;";
    else
      safe += character;
  }
  return safe;
}

// One axis: values to places on the page, with round ticks.
struct Axis {
  double low, high, step, from, to;

  Axis(double smallest, double largest, double page_from, double page_to)
      : from(page_from), to(page_to) {
    const double span = std::max(largest - smallest, 1e-3 * std::max(std::abs(largest), 1e-9));
    const double rough = span / kTicks, power = std::pow(10, std::floor(std::log10(rough)));
    step = 10 * power;
    for (const double round : {5.0, 2.0, 1.0}) {
      if (round * power >= rough) step = round * power;
    }
    low = step * std::floor(smallest / step);
    high = step * std::ceil(largest / step);
    if (high <= low) high = low + step;
  }
  double place(double value) const { return from + (to - from) * (value - low) / (high - low); }
};

std::string x_ticks(const Axis& x) {
  std::string svg;
  for (int i = 0; x.low + i * x.step <= x.high + x.step / 2; ++i) {
    const double value = x.low + i * x.step;
    svg += print("<line class='grid' x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f'/>", x.place(value),
                 kTop, x.place(value), kHeight - kBottom);
    svg += print("<text x='%.1f' y='%.1f' text-anchor='middle'>%.4g</text>\n", x.place(value),
                 kHeight - kBottom + 18, value);
  }
  return svg;
}

std::string y_ticks(const Axis& y) {
  std::string svg;
  for (int i = 0; y.low + i * y.step <= y.high + y.step / 2; ++i) {
    const double value = y.low + i * y.step;
    svg += print("<line class='grid' x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f'/>", kLeft,
                 y.place(value), kWidth - kRight, y.place(value));
    svg += print("<text x='%.1f' y='%.1f' text-anchor='end'>%.4g</text>\n", kLeft - 8,
                 y.place(value) + 4, value);
  }
  return svg;
}

std::vector<std::string> groups_of(const std::vector<PlotPoint>& points) {
  std::vector<std::string> groups;
  for (const PlotPoint& point : points) {
    if (std::ranges::find(groups, point.group) == groups.end()) groups.push_back(point.group);
  }
  return groups;
}

// A mark of the group's colour at a point of the page; when the colours are used up, of another
// shape.
std::string mark_at(const std::vector<std::string>& groups, const std::string& group, double x,
                    double y) {
  const std::size_t index = std::ranges::find(groups, group) - groups.begin();
  const char* color = kColors[index % std::size(kColors)];
  if (index < std::size(kColors)) {
    return print("<circle cx='%.1f' cy='%.1f' r='4.5' fill='%s'/>", x, y, color);
  }
  const int turn = index < 2 * std::size(kColors) ? 0 : 45;
  return print("<path d='M%.1f %.1fh8v8h-8z' transform='rotate(%d %.1f %.1f)' fill='%s'/>", x - 4,
               y - 4, turn, x, y, color);
}

std::string legend(const std::vector<std::string>& groups) {
  std::string svg;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const double y = kTop + 10 + 20.0 * static_cast<double>(i);
    svg += mark_at(groups, groups[i], kWidth - kRight + 20, y);
    svg += print("<text x='%.1f' y='%.1f'>%s</text>\n", kWidth - kRight + 32, y + 4,
                 escape(groups[i]).c_str());
  }
  return svg;
}

// Names beside points: above to the left, else below to the right, else none where they would lie
// on another name or leave the page.
class Labels {
 public:
  std::string place(const std::string& text, double x, double y) {
    const double width = kLetter * static_cast<double>(text.size());
    if (take({x - 7 - width, y - 6 - kLine, width})) return label(text, x - 7, y - 6, "end");
    if (take({x + 7, y + 14 - kLine, width})) return label(text, x + 7, y + 14, "start");
    return {};
  }

 private:
  static constexpr double kLetter = 6, kLine = 11;  // of the label's font, pixels
  struct Box {
    double x, y, width;
  };

  bool take(const Box& box) {
    const auto meets = [&](const Box& other) {
      return box.x < other.x + other.width && other.x < box.x + box.width &&
             std::abs(box.y - other.y) < kLine;
    };
    if (box.x < kLeft || box.x + box.width > kWidth - kRight) return false;
    if (std::ranges::any_of(taken_, meets)) return false;
    taken_.push_back(box);
    return true;
  }
  static std::string label(const std::string& text, double x, double y, const char* anchor) {
    return print("<text class='label' x='%.1f' y='%.1f' text-anchor='%s'>%s</text>\n", x, y, anchor,
                 escape(text).c_str());
  }

  std::vector<Box> taken_;
};

std::string frontier_line(const std::vector<PlotPoint>& points, const std::vector<int>& frontier,
                          const Axis& x, const Axis& y) {
  std::string svg = "<polyline class='frontier' points='";
  for (const int i : frontier) {
    svg += print("%.1f,%.1f ", x.place(points[i].x), y.place(points[i].y));
  }
  svg += "'/>\n";
  Labels labels;
  for (const int i : frontier) {
    svg += labels.place(points[i].label, x.place(points[i].x), y.place(points[i].y));
  }
  return svg;
}

std::string mark(const PlotPoint& point, const std::vector<std::string>& groups, const Axis& x,
                 const Axis& y) {
  const double at = x.place(point.x);
  return print(
             "<g><title>%s: %.4g, %.1f (%.1f to %.1f)</title><line class='spread' x1='%.1f' "
             "y1='%.1f' x2='%.1f' y2='%.1f'/>",
             escape(point.label).c_str(), point.x, point.y, point.y_low, point.y_high, at,
             y.place(point.y_low), at, y.place(point.y_high)) +
         mark_at(groups, point.group, at, y.place(point.y)) + "</g>\n";
}

}  // namespace

std::vector<int> pareto_frontier(const std::vector<PlotPoint>& points) {
  std::vector<int> order(points.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](int a, int b) {
    return points[a].x != points[b].x ? points[a].x < points[b].x : points[a].y > points[b].y;
  });
  std::vector<int> frontier;
  double best = -std::numeric_limits<double>::infinity();
  for (const int i : order) {
    if (points[i].y <= best) continue;
    best = points[i].y;
    frontier.push_back(i);
  }
  return frontier;
}

std::string scatter_plot(const PlotTitles& titles, const std::vector<PlotPoint>& points) {
  double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
  for (const PlotPoint& point : points) {
    x_low = std::min(x_low, point.x);
    x_high = std::max(x_high, point.x);
    y_low = std::min(y_low, point.y_low);
    y_high = std::max(y_high, point.y_high);
  }
  const Axis x(x_low, x_high, kLeft, kWidth - kRight), y(y_low, y_high, kHeight - kBottom, kTop);
  std::string svg = print(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %.0f %.0f' font-family='sans-serif' "
      "font-size='12'>\n<style>text{fill:#222}rect{fill:#fff}.grid{stroke:#ddd}.spread{stroke:#888}"
      ".label{font-size:11px}.frontier{fill:none;stroke:#888;stroke-dasharray:4 "
      "3}@media(prefers-color-scheme:dark)"
      "{text{fill:#ddd}rect{fill:#161616}.grid{stroke:#3a3a3a}}</style>\n"
      "<rect width='%.0f' height='%.0f'/>\n",
      kWidth, kHeight, kWidth, kHeight);
  svg += print("<text x='%.1f' y='24' font-size='15'>%s</text>\n", kLeft,
               escape(titles.title).c_str());
  svg += x_ticks(x) + y_ticks(y);
  svg += print("<text x='%.1f' y='%.1f' text-anchor='middle'>%s</text>\n",
               (kLeft + kWidth - kRight) / 2, kHeight - 12, escape(titles.x).c_str());
  svg += print("<text transform='translate(16 %.1f) rotate(-90)' text-anchor='middle'>%s</text>\n",
               (kTop + kHeight - kBottom) / 2, escape(titles.y).c_str());
  const std::vector<std::string> groups = groups_of(points);
  svg += legend(groups);
  svg += frontier_line(points, pareto_frontier(points), x, y);
  for (const PlotPoint& point : points) svg += mark(point, groups, x, y);
  return svg + "</svg>\n";
}

}  // namespace flashomni::cli
