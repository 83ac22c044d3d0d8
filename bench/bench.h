// bench.h -- what the timing programs share: arguments, random tensors, timing beside the peak.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "flashomni/backend.h"

namespace flashomni::bench {

// --name value, or `fallback`.
inline std::string option(int argc, char** argv, const std::string& name,
                          const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == "--" + name) return argv[i + 1];
  }
  return fallback;
}
inline int int_option(int argc, char** argv, const std::string& name, int fallback) {
  return std::atoi(option(argc, argv, name, std::to_string(fallback)).c_str());
}

inline Tensor random_tensor(DType dtype, Layout layout, unsigned seed) {
  Tensor tensor = Tensor::host(dtype, layout);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  for (index_t i = 0; i < tensor.num_elements(); ++i) {
    const float value = normal(engine);
    if (dtype == DType::kF32) {
      tensor.as<float>()[i] = value;
    } else {  // bf16 by truncation: any value will do
      const auto* words = reinterpret_cast<const std::uint16_t*>(&value);
      tensor.as<std::uint16_t>()[i] = words[1];
    }
  }
  return tensor;
}

// Seconds on the wall; on one thread, seconds of this thread's processor time, which other
// processes on a busy machine do not lengthen.
inline double now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Medians over the runs of `work` in about `budget` seconds. The machine's clock moves within
// milliseconds, so each run is held against the peak right before and after it.
struct Timing {
  double seconds = 0;
  double gflop_at_peak = 0;  // what registers alone would have done in a run's time
};
template <typename Work>
Timing time_beside_peak(const std::string& kernel_set, DType dtype, int threads, double budget,
                        const Work& work) {
  const auto peak = [&] { return measure_cpu_peak(kernel_set, dtype, threads, 2e-3); };
  const auto median = [](std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  std::vector<double> seconds, gflop_at_peak;
  work();
  const double end = now(threads) + budget;
  double before = peak();
  do {
    const double start = now(threads);
    work();
    seconds.push_back(now(threads) - start);
    const double after = peak();
    gflop_at_peak.push_back(seconds.back() * (before + after) / 2);
    before = after;
  } while (now(threads) < end);
  return {median(seconds), median(gflop_at_peak)};
}

// The kernel sets named by --set, or all that multiply operands of `dtype` in their own way.
inline std::vector<std::string> kernel_sets(int argc, char** argv) {
  const std::string wanted = option(argc, argv, "set", "");
  if (!wanted.empty()) return {wanted};
  std::vector<std::string> sets;
  for (const std::string& set : cpu_kernel_sets()) {
    if (set != "portable") sets.push_back(set);
  }
  return sets;
}

}  // namespace flashomni::bench
