// golden.h -- the recorded generations of tests/data/golden/pipeline.safetensors.
#pragma once

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "flashomni/pipeline.h"
#include "flashomni/safetensors.h"

namespace flashomni::test {

inline std::filesystem::path model_directory() {
  return std::filesystem::path(FLASHOMNI_SOURCE_DIR) / "models/flux-mini";
}

inline const SafetensorsFile& golden() {
  static const SafetensorsFile file(std::filesystem::path(FLASHOMNI_SOURCE_DIR) /
                                    "tests/data/golden/pipeline.safetensors");
  return file;
}

template <typename T = float>
std::span<const T> values_of(ConstTensorView view) {
  return {view.as<T>(), static_cast<std::size_t>(view.layout.num_elements())};
}

// NaN compares as infinitely far.
inline double max_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

struct GoldenCase {
  std::string name, prompt;
  int width, height;
  std::uint64_t seed;
};
inline const GoldenCase kPenguin{"p0", "a penguin and a palm tree in the desert in 3d style", 128,
                                 128, 100};
inline const GoldenCase kSailboat{
    "p3", "a sailboat on the sea at sunset with a cloud in the sky in 3d style", 160, 96, 103};

inline Picture golden_picture(const GoldenCase& which) {
  const auto values = values_of(golden().tensor(which.name + ".image"));
  const std::size_t pixels = values.size() / 3;
  Picture picture{which.width, which.height, {}};
  for (std::size_t i = 0; i < pixels * 3; ++i) {
    const float value = values[i % 3 * pixels + i / 3];
    picture.rgb.push_back(static_cast<std::uint8_t>(std::lround((value + 1) * 127.5f)));
  }
  return picture;
}

inline GenerateRequest request_of(const GoldenCase& which) {
  GenerateRequest request;
  request.prompt = which.prompt;
  request.width = which.width;
  request.height = which.height;
  request.seed = which.seed;
  return request;
}

}  // namespace flashomni::test
