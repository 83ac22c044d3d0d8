#include <cstring>

#include "backend/reference/reference.h"
#include "core/half.h"

namespace flashomni {

std::unique_ptr<Backend> make_reference_backend(const BackendOptions&) {
  return std::make_unique<ReferenceBackend>();
}

BackendProbe probe_reference_backend() { return {true, "scalar fp32 loops"}; }

Tensor ReferenceBackend::allocate(DType dtype, Layout layout) {
  return Tensor::host(dtype, layout);
}

void ReferenceBackend::copy(ConstTensorView from, TensorView to, Stream) {
  const index_t bytes = to.layout.num_elements() * size_in_bytes(to.dtype);
  if (bytes > 0) std::memcpy(to.data, from.data, static_cast<std::size_t>(bytes));
}

// Row-major, as it came, rounded to `dtype`.
PackedWeight ReferenceBackend::pack_weight(ConstTensorView weight, DType dtype, int column_group) {
  PackedWeight packed;
  packed.out_features = weight.size(0);
  packed.in_features = weight.size(1);
  packed.dtype = dtype;
  packed.column_group = column_group;
  packed.storage = Tensor::host(dtype, {packed.out_features, packed.in_features});
  for (index_t row = 0; row < packed.out_features; ++row) {
    for (index_t column = 0; column < packed.in_features; ++column) {
      store_float(packed.storage, row * packed.in_features + column,
                  load_float(weight, row * weight.stride(0) + column * weight.stride(1)));
    }
  }
  return packed;
}

void ReferenceBackend::build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan,
                                            Stream) {
  flashomni::build_attention_plan(symbols, plan);
}

void ReferenceBackend::build_gemm_plan(const SparseSymbols& symbols, int first_token,
                                       int num_tokens, const SparseSymbols* previous,
                                       GemmPlan& plan, Stream) {
  flashomni::build_gemm_plan(symbols, first_token, num_tokens, previous, plan);
}

}  // namespace flashomni
