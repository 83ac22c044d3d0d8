// forecast.h -- features remembered as finite differences, and their extrapolation.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "flashomni/engine.h"

namespace flashomni {

// forecast_coefficients() for every distance from the last update that a generation of `num_steps`
// can meet, made once, so that a dispatch step allocates nothing.
class CoefficientTable {
 public:
  CoefficientTable() = default;
  CoefficientTable(const EngineOptions& options, int num_steps);
  std::span<const float> at(int k) const { return {rows_[k].data(), num_terms_}; }

 private:
  std::vector<std::array<float, kMaxForecastOrder + 1>> rows_;
  std::size_t num_terms_ = 0;
};

// The output of one module of a layer in whole-layer caching, with its finite differences.
class ModuleCache {
 public:
  bool is_recorded() const { return valid_order_ >= 0; }
  // Allocates at the first call.
  void record(Backend& backend, ConstTensorView value, int step, int max_order);
  void forecast(Backend& backend, int step, const CoefficientTable& coefficients,
                TensorView out) const;

 private:
  std::array<Tensor, kMaxForecastOrder + 1> terms_;
  std::array<TensorView, kMaxForecastOrder + 1> views_;
  int valid_order_ = -1;
  int recorded_at_ = 0;
};

}  // namespace flashomni
