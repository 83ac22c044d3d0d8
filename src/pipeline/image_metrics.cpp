#include "flashomni/image_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "core/check.h"

namespace flashomni {
namespace {

constexpr int kWindow = 7;
constexpr double kRange = 255.0;
constexpr double kMaxPsnrDb = 100.0;

void check_same_size(const char* function, const Picture& a, const Picture& b) {
  FO_CHECK(a.width == b.width && a.height == b.height,
           "%s: the pictures are %d x %d and %d x %d, sizes must agree", function, a.width,
           a.height, b.width, b.height);
}

// Window sums of a, b, a^2, b^2 and ab: integers, so running updates are exact.
using Sums = std::array<std::int64_t, 5>;

void add(Sums& x, const Sums& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}
void subtract(Sums& x, const Sums& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] -= y[i];
}

double ssim_of_window(const Sums& sums) {
  constexpr double n = kWindow * kWindow;
  constexpr double c1 = (0.01 * kRange) * (0.01 * kRange);
  constexpr double c2 = (0.03 * kRange) * (0.03 * kRange);
  constexpr double unbias = n / (n - 1);
  const double mean_a = sums[0] / n, mean_b = sums[1] / n;
  const double var_a = unbias * (sums[2] / n - mean_a * mean_a);
  const double var_b = unbias * (sums[3] / n - mean_b * mean_b);
  const double covariance = unbias * (sums[4] / n - mean_a * mean_b);
  return (2 * mean_a * mean_b + c1) * (2 * covariance + c2) /
         ((mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2));
}

double ssim_of_channel(const Picture& a, const Picture& b, int channel) {
  const auto pixel = [&](int x, int y) {
    const std::size_t at = (static_cast<std::size_t>(y) * a.width + x) * 3 + channel;
    const std::int64_t u = a.rgb[at], v = b.rgb[at];
    return Sums{u, v, u * u, v * v, u * v};
  };
  std::vector<Sums> column(a.width, Sums{});  // sums over the kWindow rows that end at y
  double total = 0;
  for (int y = 0; y < a.height; ++y) {
    for (int x = 0; x < a.width; ++x) {
      add(column[x], pixel(x, y));
      if (y >= kWindow) subtract(column[x], pixel(x, y - kWindow));
    }
    if (y < kWindow - 1) continue;
    Sums window{};
    for (int x = 0; x < a.width; ++x) {
      add(window, column[x]);
      if (x >= kWindow) subtract(window, column[x - kWindow]);
      if (x >= kWindow - 1) total += ssim_of_window(window);
    }
  }
  return total / (static_cast<double>(a.width - kWindow + 1) * (a.height - kWindow + 1));
}

}  // namespace

double psnr_db(const Picture& a, const Picture& b) {
  check_same_size("psnr_db", a, b);
  double squares = 0;
  for (std::size_t i = 0; i < a.rgb.size(); ++i) {
    const double difference = static_cast<double>(a.rgb[i]) - b.rgb[i];
    squares += difference * difference;
  }
  if (squares == 0) return kMaxPsnrDb;
  const double mean_square = squares / static_cast<double>(a.rgb.size());
  return std::min(kMaxPsnrDb, 10 * std::log10(kRange * kRange / mean_square));
}

double ssim(const Picture& a, const Picture& b) {
  check_same_size("ssim", a, b);
  FO_CHECK(a.width >= kWindow && a.height >= kWindow,
           "ssim: the pictures are %d x %d, both sides must be at least %d", a.width, a.height,
           kWindow);
  return (ssim_of_channel(a, b, 0) + ssim_of_channel(a, b, 1) + ssim_of_channel(a, b, 2)) / 3;
}

int max_abs_diff(const Picture& a, const Picture& b) {
  check_same_size("max_abs_diff", a, b);
  int largest = 0;
  for (std::size_t i = 0; i < a.rgb.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<int>(a.rgb[i]) - b.rgb[i]));
  }
  return largest;
}

}  // namespace flashomni
