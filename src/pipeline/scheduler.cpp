// scheduler.cpp -- linear noise levels, shifted by the number of image tokens.
// SPDX-License-Identifier: Apache-2.0
#include "pipeline/scheduler.h"

#include <cmath>
#include <string>

#include "core/check.h"
#include "pipeline/json_file.h"

namespace flashomni {

FlowMatchScheduler FlowMatchScheduler::load(const std::filesystem::path& directory) {
  const auto path = directory / "scheduler_config.json";
  const nlohmann::json json = read_json_file(path);
  const auto name = json_value<std::string>(path, json, "_class_name");
  if (name != "FlowMatchEulerDiscreteScheduler") {
    FO_FAIL(kUnsupported, "pipeline: scheduler %s, supported is FlowMatchEulerDiscreteScheduler",
            name.c_str());
  }
  for (const char* option : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                             "invert_sigmas", "stochastic_sampling"}) {
    if (json_value(path, json, option, false)) {
      FO_FAIL(kUnsupported, "pipeline: %s sets %s, which is not supported", path.c_str(), option);
    }
  }
  const auto kind = json_value<std::string>(path, json, "time_shift_type", "exponential");
  if (kind != "exponential") {
    FO_FAIL(kUnsupported, "pipeline: %s has time_shift_type %s, supported is exponential",
            path.c_str(), kind.c_str());
  }
  FlowMatchScheduler scheduler;
  scheduler.shift_ = json_value(path, json, "shift", scheduler.shift_);
  scheduler.dynamic_ = json_value(path, json, "use_dynamic_shifting", scheduler.dynamic_);
  scheduler.base_shift_ = json_value(path, json, "base_shift", scheduler.base_shift_);
  scheduler.max_shift_ = json_value(path, json, "max_shift", scheduler.max_shift_);
  scheduler.base_tokens_ = json_value(path, json, "base_image_seq_len", scheduler.base_tokens_);
  scheduler.max_tokens_ = json_value(path, json, "max_image_seq_len", scheduler.max_tokens_);
  FO_CHECK(scheduler.max_tokens_ > scheduler.base_tokens_ && scheduler.shift_ > 0,
           "pipeline: %s: max_image_seq_len must be above base_image_seq_len, shift above 0",
           path.c_str());
  return scheduler;
}

std::vector<float> FlowMatchScheduler::sigmas(int steps, int image_tokens) const {
  double factor = shift_;
  if (dynamic_) {
    const double slope = (max_shift_ - base_shift_) / (max_tokens_ - base_tokens_);
    factor = std::exp(base_shift_ + slope * (image_tokens - base_tokens_));
  }
  std::vector<float> levels;
  for (int i = 0; i < steps; ++i) {
    const double level = 1.0 - static_cast<double>(i) / steps;  // 1, ..., 1 / steps
    levels.push_back(static_cast<float>(factor / (factor + (1 / level - 1))));
  }
  levels.push_back(0);
  return levels;
}

}  // namespace flashomni
