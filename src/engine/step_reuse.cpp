// step_reuse.cpp -- a whole forward pass reused while its first layer says that little changed.
// SPDX-License-Identifier: Apache-2.0
#include "engine/step_reuse.h"

#include <cmath>
#include <limits>
#include <utility>

namespace flashomni {
namespace {

void subtract(Backend& backend, TensorView a, TensorView b, TensorView out) {
  const TensorView terms[] = {a, b};
  constexpr float kSigns[] = {1, -1};
  backend.forecast(terms, kSigns, out, {});
}

}  // namespace

void StepReuse::reserve(Backend& backend, const Layout& layout) {
  if (entry_) return;
  for (Tensor* tensor : {&entry_, &after_first_, &residual_, &rest_}) {
    *tensor = backend.allocate(DType::kF32, layout);
  }
  for (Tensor* tensor : {&host_now_, &host_last_}) *tensor = Tensor::host(DType::kF32, layout);
}

void StepReuse::enter(Backend& backend, ConstTensorView hidden) {
  reserve(backend, hidden.layout);
  backend.copy(hidden, entry_, {});
}

double StepReuse::change(Backend& backend, TensorView hidden) {
  subtract(backend, hidden, entry_, residual_);
  backend.copy(residual_, host_now_, {});
  backend.synchronize({});
  if (!has_rest_) return std::numeric_limits<double>::infinity();
  double difference = 0, total = 0;
  for (index_t i = 0; i < host_now_.num_elements(); ++i) {
    const float now = host_now_.as<float>()[i], last = host_last_.as<float>()[i];
    difference += std::abs(now - last);
    total += std::abs(last);
  }
  return difference / total;
}

void StepReuse::add_rest(Backend& backend, TensorView hidden) {
  backend.gated_add(rest_, {}, hidden, {});
}

void StepReuse::keep(Backend& backend, TensorView hidden) {
  std::swap(host_now_, host_last_);
  backend.copy(hidden, after_first_, {});
}

void StepReuse::leave(Backend& backend, TensorView hidden) {
  subtract(backend, hidden, after_first_, rest_);
  has_rest_ = true;
}

}  // namespace flashomni
