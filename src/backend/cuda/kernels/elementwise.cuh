// elementwise.cuh -- the memory-bound operations: norms, residuals, forecasts.
//
// All arithmetic is fp32. Rows of activations may be f32, bf16 or f16; which one is a run-time
// value of these kernels, because they wait for memory and not for a switch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/device/warp.cuh"

namespace flashomni::cuda {

enum class Float : int { kF32, kBF16, kF16 };

struct FloatArray {
  void* data;
  Float type;

  __device__ float load(std::int64_t at) const {
    if (type == Float::kBF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    if (type == Float::kF16) return __half2float(static_cast<const __half*>(data)[at]);
    return static_cast<const float*>(data)[at];
  }
  __device__ void store(std::int64_t at, float value) const {
    if (type == Float::kBF16) {
      static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16(value);
    } else if (type == Float::kF16) {
      static_cast<__half*>(data)[at] = __float2half(value);
    } else {
      static_cast<float*>(data)[at] = value;
    }
  }
};

// Sum over a block of 256 threads, returned to all.
__device__ inline float block_sum(float x) {
  __shared__ float partial[8];
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (const float part : partial) sum += part;
  return sum;
}

struct Modulation {
  const float *shift, *scale;
  float eps;
};

// One row a block of 256 threads: out = layer_norm(x) (1 + scale) + shift.
__global__ void norm_modulate_kernel(const float* x, std::int64_t x_stride, Modulation modulation,
                                     FloatArray out, std::int64_t out_stride, int dim) {
  const auto [shift, scale, eps] = modulation;
  const float* row = x + blockIdx.x * x_stride;
  float sum = 0;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) sum += row[i];
  const float mean = block_sum(sum) / static_cast<float>(dim);
  float squares = 0;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
  const float factor = rsqrtf(block_sum(squares) / static_cast<float>(dim) + eps);
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    out.store(blockIdx.x * out_stride + i, (row[i] - mean) * factor * (1 + scale[i]) + shift[i]);
  }
}

// residual += gate * y; gate may be nullptr. One row a block.
__global__ void gated_add_kernel(FloatArray y, std::int64_t y_stride, const float* gate,
                                 float* residual, std::int64_t residual_stride, int dim) {
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    const float value = y.load(blockIdx.x * y_stride + i);
    residual[blockIdx.x * residual_stride + i] += gate ? gate[i] * value : value;
  }
}

inline constexpr int kMostTerms = 3;
struct Terms {
  float* data[kMostTerms];
  float coefficients[kMostTerms];
  int count;
};

__global__ void forecast_kernel(Terms terms, FloatArray out, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int o = 0; o < terms.count; ++o) sum += terms.coefficients[o] * terms.data[o][i];
  out.store(i, sum);
}

__global__ void push_differences_kernel(FloatArray value, Terms terms, float steps,
                                        std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float term = value.load(i);
  for (int o = 0; o < terms.count; ++o) {
    const float before = terms.data[o][i];
    terms.data[o][i] = term;
    term = (term - before) / steps;
  }
}

}  // namespace flashomni::cuda
