#include "backend/cuda/instances/attention_sm90.cuh"

namespace flashomni::cuda {

AttentionKernel attention_sm90_bf16_d64() {
  return attention_sm90_row<__nv_bfloat16, 64>(DType::kBF16);
}

}  // namespace flashomni::cuda
