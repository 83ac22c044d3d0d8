#include <cmath>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"

namespace flashomni {
namespace {

float activate(Activation activation, float x) {
  constexpr float kSqrtTwoOverPi = 0.797884561f;
  switch (activation) {
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(kSqrtTwoOverPi * (x + 0.044715f * x * x * x)));
    case Activation::kSilu: return x / (1.0f + std::exp(-x));
    case Activation::kNone: break;
  }
  return x;
}

}  // namespace

void ReferenceBackend::linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                              Activation activation, TensorView out, Stream) {
  for (index_t row = 0; row < x.size(0); ++row) {
    const auto input = load_row(x, row * x.stride(0), weight.in_features);
    for (index_t feature = 0; feature < weight.out_features; ++feature) {
      const auto w = load_row(weight.storage, feature * weight.in_features, weight.in_features);
      const float sum = dot(input, w) + (bias ? load_float(bias, feature) : 0.0f);
      store_float(out, row * out.stride(0) + feature, activate(activation, sum));
    }
  }
}

}  // namespace flashomni
