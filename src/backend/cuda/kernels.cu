#include "backend/cuda/kernels.h"

namespace flashomni::cuda {
namespace {

constexpr AttentionKernel (*kAttentionKernels[])() = {
    attention_sm90_bf16_d64,
    attention_sm90_bf16_d128,
    attention_sm90_f16_d64,
    attention_sm90_f16_d128,
};
constexpr GemmKernel (*kGemmKernels[])() = {
    gemm_sm90_bf16_linear,       gemm_sm90_bf16_heads_d64,   gemm_sm90_bf16_heads_d128,
    gemm_sm90_bf16_update,       gemm_sm90_bf16_update_f32,  gemm_sm90_bf16_dispatch,
    gemm_sm90_bf16_dispatch_f32, gemm_sm90_f16_linear,       gemm_sm90_f16_heads_d64,
    gemm_sm90_f16_heads_d128,    gemm_sm90_f16_update,       gemm_sm90_f16_update_f32,
    gemm_sm90_f16_dispatch,      gemm_sm90_f16_dispatch_f32,
};

}  // namespace

std::optional<AttentionKernel> find_attention_kernel(int arch, DType dtype, int head_dim) {
  for (const auto row : kAttentionKernels) {
    const AttentionKernel kernel = row();
    if (kernel.arch == arch && kernel.dtype == dtype && kernel.head_dim == head_dim) return kernel;
  }
  return std::nullopt;
}

std::optional<GemmKernel> find_gemm_kernel(int arch, DType dtype, GemmKind kind, int head_dim,
                                           DType term) {
  for (const auto row : kGemmKernels) {
    const GemmKernel kernel = row();
    if (kernel.arch == arch && kernel.dtype == dtype && kernel.kind == kind &&
        kernel.head_dim == head_dim && kernel.term == term) {
      return kernel;
    }
  }
  return std::nullopt;
}

}  // namespace flashomni::cuda
