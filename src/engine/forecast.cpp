// forecast.cpp -- features remembered as finite differences, and their extrapolation.
// SPDX-License-Identifier: Apache-2.0
#include "engine/forecast.h"

#include <algorithm>

#include "core/check.h"

namespace flashomni {

std::vector<float> forecast_coefficients(ForecastKind kind, int order, int k, int interval) {
  FO_CHECK(order >= 0 && order <= kMaxForecastOrder,
           "forecast_coefficients: order is %d, must be 0 to %d", order, kMaxForecastOrder);
  // Newton's backward form is exact for polynomials of degree <= order on a uniform grid.
  const float step = static_cast<float>(k);
  const float offset = kind == ForecastKind::kNewton ? static_cast<float>(interval) : 0.0f;
  std::vector<float> coefficients{1.0f, step, step * (step + offset) / 2.0f};
  coefficients.resize(static_cast<std::size_t>(order) + 1);
  return coefficients;
}

CoefficientTable::CoefficientTable(const EngineOptions& options, int num_steps)
    : rows_(static_cast<std::size_t>(std::min(options.interval, num_steps))),
      num_terms_(static_cast<std::size_t>(options.order) + 1) {
  for (std::size_t k = 0; k < rows_.size(); ++k) {
    std::ranges::copy(forecast_coefficients(options.forecast, options.order, static_cast<int>(k),
                                            options.interval),
                      rows_[k].begin());
  }
}

void ModuleCache::record(Backend& backend, ConstTensorView value, int step, int max_order) {
  if (!is_recorded()) {
    for (int order = 0; order <= max_order; ++order) {
      terms_[order] = backend.allocate(DType::kF32, value.layout);
      views_[order] = terms_[order];
    }
  }
  valid_order_ = std::min(valid_order_ + 1, max_order);
  backend.push_differences(value, valid_order_, static_cast<float>(step - recorded_at_),
                           {views_.data(), static_cast<std::size_t>(max_order) + 1}, {});
  recorded_at_ = step;
}

void ModuleCache::forecast(Backend& backend, int step, const CoefficientTable& coefficients,
                           TensorView out) const {
  const auto num_terms = static_cast<std::size_t>(valid_order_) + 1;
  backend.forecast({views_.data(), num_terms},
                   coefficients.at(step - recorded_at_).first(num_terms), out, {});
}

}  // namespace flashomni
