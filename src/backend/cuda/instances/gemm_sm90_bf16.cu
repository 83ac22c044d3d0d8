#include "backend/cuda/instances/gemm_sm90.cuh"

namespace flashomni::cuda {

GemmKernel gemm_sm90_bf16_linear() { return gemm_sm90_row<__nv_bfloat16, GemmKind::kLinear>(); }
GemmKernel gemm_sm90_bf16_heads_d64() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kHeads, 64>();
}
GemmKernel gemm_sm90_bf16_heads_d128() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kHeads, 128>();
}
GemmKernel gemm_sm90_bf16_update() { return gemm_sm90_row<__nv_bfloat16, GemmKind::kUpdate>(); }
GemmKernel gemm_sm90_bf16_update_f32() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kUpdate, 0, float>();
}
GemmKernel gemm_sm90_bf16_dispatch() { return gemm_sm90_row<__nv_bfloat16, GemmKind::kDispatch>(); }
GemmKernel gemm_sm90_bf16_dispatch_f32() {
  return gemm_sm90_row<__nv_bfloat16, GemmKind::kDispatch, 0, float>();
}

}  // namespace flashomni::cuda
