#include "backend/cuda/instances/attention_sm90.cuh"

namespace flashomni::cuda {

AttentionKernel attention_sm90_f16_d64() { return attention_sm90_row<__half, 64>(DType::kF16); }

}  // namespace flashomni::cuda
