#include "backend/cuda/instances/attention_sm90.cuh"

namespace flashomni::cuda {

AttentionKernel attention_sm90_f16_d128() { return attention_sm90_row<__half, 128>(DType::kF16); }

}  // namespace flashomni::cuda
