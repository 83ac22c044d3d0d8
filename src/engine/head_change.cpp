// head_change.cpp -- how much each head's attention output moves from update to update.
// SPDX-License-Identifier: Apache-2.0
#include "engine/head_change.h"

#include <cmath>
#include <utility>

#include "core/half.h"

namespace flashomni {
namespace {

template <typename T>
float relative_change(const Tensor& now, const Tensor& last, index_t head) {
  const index_t heads = now.size(2), head_dim = now.size(3);
  double difference = 0, total = 0;
  for (index_t token = 0; token < now.size(1); ++token) {
    const index_t row = (token * heads + head) * head_dim;
    for (index_t d = 0; d < head_dim; ++d) {
      const double a = to_float(now.as<T>()[row + d]), b = to_float(last.as<T>()[row + d]);
      difference += (a - b) * (a - b);
      total += a * a;
    }
  }
  return static_cast<float>(std::sqrt(difference / total));
}

float relative_change(const Tensor& now, const Tensor& last, index_t head) {
  switch (now.dtype()) {
    case DType::kBF16: return relative_change<BFloat16>(now, last, head);
    case DType::kF16: return relative_change<Half>(now, last, head);
    default: return relative_change<float>(now, last, head);
  }
}

}  // namespace

const std::vector<float>& HeadChange::measure(Backend& backend, ConstTensorView o, int steps) {
  if (!now_) now_ = Tensor::host(o.dtype, o.layout);
  backend.copy(o, now_, {});
  backend.synchronize({});
  if (last_) {
    change_.resize(static_cast<std::size_t>(o.size(2)));
    for (std::size_t head = 0; head < change_.size(); ++head) {
      change_[head] =
          relative_change(now_, last_, static_cast<index_t>(head)) / static_cast<float>(steps);
    }
  }
  std::swap(now_, last_);
  return change_;
}

}  // namespace flashomni
