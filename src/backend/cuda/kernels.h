// kernels.h -- the compiled kernels. Adding one is a file in instances/ and a row in kernels.cu.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "flashomni/tensor.h"

#include "backend/cuda/kernels/attention_params.h"
#include "backend/cuda/kernels/gemm_params.h"

namespace flashomni::cuda {

struct AttentionKernel {
  int arch;  // compute capability, 90 for 9.0
  DType dtype;
  int head_dim;
  void (*function)(AttentionParams);
  int threads, shared_bytes;
  int partial_bytes;  // AttentionPartial
};

struct GemmKernel {
  int arch;
  DType dtype;
  GemmKind kind;
  int head_dim;  // of kHeads, else 0
  DType term;    // of the bias cache of kUpdate and kDispatch: f32 or `dtype`; else `dtype`
  void (*function)(GemmParams);
  int threads, shared_bytes;
};

// Empty if there is none.
std::optional<AttentionKernel> find_attention_kernel(int arch, DType dtype, int head_dim);
std::optional<GemmKernel> find_gemm_kernel(int arch, DType dtype, GemmKind kind, int head_dim,
                                           DType term);

// One a file in instances/.
AttentionKernel attention_sm90_bf16_d64();
AttentionKernel attention_sm90_bf16_d128();
AttentionKernel attention_sm90_f16_d64();
AttentionKernel attention_sm90_f16_d128();
GemmKernel gemm_sm90_bf16_linear();
GemmKernel gemm_sm90_bf16_heads_d64();
GemmKernel gemm_sm90_bf16_heads_d128();
GemmKernel gemm_sm90_bf16_update();
GemmKernel gemm_sm90_bf16_update_f32();
GemmKernel gemm_sm90_bf16_dispatch();
GemmKernel gemm_sm90_bf16_dispatch_f32();
GemmKernel gemm_sm90_f16_linear();
GemmKernel gemm_sm90_f16_heads_d64();
GemmKernel gemm_sm90_f16_heads_d128();
GemmKernel gemm_sm90_f16_update();
GemmKernel gemm_sm90_f16_update_f32();
GemmKernel gemm_sm90_f16_dispatch();
GemmKernel gemm_sm90_f16_dispatch_f32();

}  // namespace flashomni::cuda
