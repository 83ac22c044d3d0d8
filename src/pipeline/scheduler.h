// scheduler.h -- the noise levels of a generation: diffusers' FlowMatchEulerDiscreteScheduler.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <vector>

namespace flashomni {

class FlowMatchScheduler {
 public:
  // `directory` holds scheduler_config.json. Throws kUnsupported for another scheduler or an option
  // that changes the noise levels in a way that is not implemented.
  static FlowMatchScheduler load(const std::filesystem::path& directory);

  // steps + 1 levels from 1 down to 0; the last is 0. Larger pictures stay noisy for longer.
  std::vector<float> sigmas(int steps, int image_tokens) const;

 private:
  double shift_ = 1, base_shift_ = 0.5, max_shift_ = 1.15;
  int base_tokens_ = 256, max_tokens_ = 4096;
  bool dynamic_ = false;
};

}  // namespace flashomni
