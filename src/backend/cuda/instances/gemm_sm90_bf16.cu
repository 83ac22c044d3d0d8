#include "backend/cuda/instances/gemm_sm90.cuh"

namespace flashomni::cuda {

GemmKernel gemm_sm90_bf16_linear() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kLinear>(DType::kBF16);
}
GemmKernel gemm_sm90_bf16_heads_d64() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kHeads, 64>(DType::kBF16);
}
GemmKernel gemm_sm90_bf16_heads_d128() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kHeads, 128>(DType::kBF16);
}
GemmKernel gemm_sm90_bf16_update() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kUpdate>(DType::kBF16);
}
GemmKernel gemm_sm90_bf16_dispatch() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kDispatch>(DType::kBF16);
}

}  // namespace flashomni::cuda
