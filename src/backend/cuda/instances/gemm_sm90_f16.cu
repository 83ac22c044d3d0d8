#include "backend/cuda/instances/gemm_sm90.cuh"

namespace flashomni::cuda {

GemmKernel gemm_sm90_f16_linear() { return gemm_sm90_row<__half, GemmKind::kLinear>(); }
GemmKernel gemm_sm90_f16_heads_d64() { return gemm_sm90_row<__half, GemmKind::kHeads, 64>(); }
GemmKernel gemm_sm90_f16_heads_d128() { return gemm_sm90_row<__half, GemmKind::kHeads, 128>(); }
GemmKernel gemm_sm90_f16_update() { return gemm_sm90_row<__half, GemmKind::kUpdate>(); }
GemmKernel gemm_sm90_f16_update_f32() {
  return gemm_sm90_row<__half, GemmKind::kUpdate, 0, float>();
}
GemmKernel gemm_sm90_f16_dispatch() { return gemm_sm90_row<__half, GemmKind::kDispatch>(); }
GemmKernel gemm_sm90_f16_dispatch_f32() {
  return gemm_sm90_row<__half, GemmKind::kDispatch, 0, float>();
}

}  // namespace flashomni::cuda
