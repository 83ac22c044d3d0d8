#include "backend/cuda/elementwise.h"

#include <algorithm>

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/kernels/elementwise.cuh"

namespace flashomni::cuda {
namespace {

constexpr int kThreads = 256;

FloatArray float_array(ConstTensorView view) {
  const Float type = view.dtype == DType::kBF16  ? Float::kBF16
                     : view.dtype == DType::kF16 ? Float::kF16
                                                 : Float::kF32;
  return {const_cast<void*>(view.data), type};
}

unsigned blocks_for(index_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

Terms device_terms(std::span<const TensorView> terms, std::size_t count) {
  Terms result{};
  result.count = static_cast<int>(count);
  for (std::size_t o = 0; o < count; ++o) result.data[o] = terms[o].as<float>();
  return result;
}

}  // namespace

void launch_norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale,
                          float eps, TensorView out, cudaStream_t stream) {
  if (x.size(0) == 0) return;
  norm_modulate_kernel<<<static_cast<unsigned>(x.size(0)), kThreads, 0, stream>>>(
      x.as<float>(), x.stride(0), {shift.as<float>(), scale.as<float>(), eps}, float_array(out),
      out.stride(0), static_cast<int>(x.size(1)));
  FO_CUDA(cudaGetLastError());
}

void launch_gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                      cudaStream_t stream) {
  if (residual.size(0) == 0) return;
  gated_add_kernel<<<static_cast<unsigned>(residual.size(0)), kThreads, 0, stream>>>(
      float_array(y), y.stride(0), gate.as<float>(), residual.as<float>(), residual.stride(0),
      static_cast<int>(residual.size(1)));
  FO_CUDA(cudaGetLastError());
}

void launch_forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                     TensorView out, cudaStream_t stream) {
  const index_t count = out.layout.num_elements();
  if (count == 0) return;
  Terms inputs = device_terms(terms, coefficients.size());
  std::copy(coefficients.begin(), coefficients.end(), inputs.coefficients);
  forecast_kernel<<<blocks_for(count), kThreads, 0, stream>>>(inputs, float_array(out), count);
  FO_CUDA(cudaGetLastError());
}

void launch_push_differences(ConstTensorView value, int order, float steps,
                             std::span<const TensorView> terms, cudaStream_t stream) {
  const index_t count = value.layout.num_elements();
  if (count == 0) return;
  push_differences_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
      float_array(value), device_terms(terms, static_cast<std::size_t>(order) + 1), steps, count);
  FO_CUDA(cudaGetLastError());
}

}  // namespace flashomni::cuda
