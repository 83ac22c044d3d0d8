// noise.cpp -- mt19937, 24-bit uniforms, Box-Muller in groups of 16 as ATen's normal_fill.
// SPDX-License-Identifier: Apache-2.0
#include "pipeline/noise.h"

#include <cmath>
#include <numbers>
#include <random>

#include "core/check.h"

namespace flashomni {
namespace {

constexpr std::size_t kGroup = 16;

float uniform(std::mt19937& generator) {
  return static_cast<float>(generator() & 0xffffffu) * 0x1p-24f;
}

// Values j and j + 8 are one pair.
void box_muller(std::span<float, kGroup> values) {
  for (std::size_t j = 0; j < kGroup / 2; ++j) {
    const float radius = std::sqrt(-2.0f * std::log(1.0f - values[j]));
    const float angle = 2.0f * std::numbers::pi_v<float> * values[j + kGroup / 2];
    values[j] = radius * std::cos(angle);
    values[j + kGroup / 2] = radius * std::sin(angle);
  }
}

}  // namespace

void fill_normal(std::uint64_t seed, std::span<float> out) {
  FO_CHECK(out.size() >= kGroup, "noise: %zu values, must be at least %zu", out.size(), kGroup);
  std::mt19937 generator(static_cast<std::uint32_t>(seed));  // torch uses the low 32 bits too
  for (float& value : out) value = uniform(generator);
  std::size_t done = 0;
  for (; done + kGroup <= out.size(); done += kGroup) box_muller(out.subspan(done).first<kGroup>());
  if (done == out.size()) return;
  // The last 16 values are drawn anew, over some that were finished.
  const auto tail = out.last<kGroup>();
  for (float& value : tail) value = uniform(generator);
  box_muller(tail);
}

}  // namespace flashomni
