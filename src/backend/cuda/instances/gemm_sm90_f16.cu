#include "backend/cuda/instances/gemm_sm90.cuh"

namespace flashomni::cuda {

GemmKernel gemm_sm90_f16_linear() { return gemm_sm90_row<__half, GemmKind::kLinear>(DType::kF16); }
GemmKernel gemm_sm90_f16_heads_d64() {
  return gemm_sm90_row<__half, GemmKind::kHeads, 64>(DType::kF16);
}
GemmKernel gemm_sm90_f16_heads_d128() {
  return gemm_sm90_row<__half, GemmKind::kHeads, 128>(DType::kF16);
}
GemmKernel gemm_sm90_f16_update() { return gemm_sm90_row<__half, GemmKind::kUpdate>(DType::kF16); }
GemmKernel gemm_sm90_f16_dispatch() {
  return gemm_sm90_row<__half, GemmKind::kDispatch>(DType::kF16);
}

}  // namespace flashomni::cuda
