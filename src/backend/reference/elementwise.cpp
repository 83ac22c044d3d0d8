#include <cmath>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"

namespace flashomni {

void ReferenceBackend::norm_modulate(ConstTensorView x, ConstTensorView shift,
                                     ConstTensorView scale, float eps, TensorView out, Stream) {
  const index_t dim = x.size(1);
  for (index_t row = 0; row < x.size(0); ++row) {
    std::vector<float> values = load_row(x, row * x.stride(0), dim);
    float mean = 0, variance = 0;
    for (const float value : values) mean += value;
    mean /= static_cast<float>(dim);
    for (const float value : values) variance += (value - mean) * (value - mean);
    variance /= static_cast<float>(dim);
    const float inverse_deviation = 1.0f / std::sqrt(variance + eps);
    for (index_t d = 0; d < dim; ++d) {
      values[d] = (values[d] - mean) * inverse_deviation * (1.0f + load_float(scale, d)) +
                  load_float(shift, d);
    }
    store_row(out, row * out.stride(0), values);
  }
}

void ReferenceBackend::gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                                 Stream) {
  for (index_t row = 0; row < residual.size(0); ++row) {
    for (index_t d = 0; d < residual.size(1); ++d) {
      const float factor = gate ? load_float(gate, d) : 1.0f;
      const index_t offset = row * residual.stride(0) + d;
      store_float(residual, offset,
                  load_float(residual, offset) + factor * load_float(y, row * y.stride(0) + d));
    }
  }
}

void ReferenceBackend::forecast(std::span<const TensorView> terms,
                                std::span<const float> coefficients, TensorView out, Stream) {
  for (index_t i = 0; i < out.layout.num_elements(); ++i) {
    float sum = 0;
    for (std::size_t o = 0; o < coefficients.size(); ++o) {
      sum += coefficients[o] * load_float(terms[o], i);
    }
    store_float(out, i, sum);
  }
}

void ReferenceBackend::push_differences(ConstTensorView value, int order, float steps,
                                        std::span<const TensorView> terms, Stream) {
  for (index_t i = 0; i < value.layout.num_elements(); ++i) {
    float term = load_float(value, i);
    for (int o = 0; o <= order; ++o) {
      const float old = load_float(terms[o], i);
      store_float(terms[o], i, term);
      term = (term - old) / steps;
    }
  }
}

}  // namespace flashomni
