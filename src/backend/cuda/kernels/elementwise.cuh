// elementwise.cuh -- the memory-bound operations: norms, residuals, forecasts, pooled scores.
//
// All arithmetic is fp32. Rows of activations may be f32, bf16 or f16; which one is a run-time
// value of these kernels, because they wait for memory and not for a switch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

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

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

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

// --- pooled scores -----------------------------------------------------------------------------

inline constexpr int kMostPooledDims = 256;

// One of Q and K: [batch, tokens, heads, head_dim].
struct PoolInput {
  FloatArray x;
  std::int64_t batch_stride, token_stride, head_stride;
  const int2* blocks;  // [batch, num_blocks]: first token and count
  int num_blocks, head_dim;
  const float* subtract;  // [batch, heads, head_dim], taken off every token; or nullptr
};

// The mean of each block's tokens [batch, heads, num_blocks, head_dim], and the mean pairwise
// cosine [batch, heads, num_blocks] (or nullptr). Grid (num_blocks, heads, batch), 128 threads:
// each warp walks every fourth token.
__global__ void pool_kernel(PoolInput in, float* means, float* similarity) {
  constexpr int kWarps = 4, kEach = kMostPooledDims / 32;
  __shared__ float sums[kWarps][kMostPooledDims], units[kWarps][kMostPooledDims];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int2 block = in.blocks[blockIdx.z * in.num_blocks + blockIdx.x];
  const std::int64_t head = blockIdx.z * gridDim.y + blockIdx.y;
  float sum[kEach] = {}, unit[kEach] = {};
  for (int t = warp; t < block.y; t += kWarps) {
    float value[kEach], squares = 0;
    for (int e = 0; e < kEach; ++e) {
      const int d = 32 * e + lane;
      value[e] = 0;
      if (d >= in.head_dim) continue;
      value[e] = in.x.load(blockIdx.z * in.batch_stride + (block.x + t) * in.token_stride +
                           blockIdx.y * in.head_stride + d);
      if (in.subtract) value[e] -= in.subtract[head * in.head_dim + d];
      squares += value[e] * value[e];
    }
    const float norm = sqrtf(warp_sum(squares));
    const float inverse = norm > 0 ? 1 / norm : 0;
    for (int e = 0; e < kEach; ++e) {
      sum[e] += value[e];
      unit[e] += value[e] * inverse;
    }
  }
  for (int e = 0; e < kEach; ++e) {
    sums[warp][32 * e + lane] = sum[e];
    units[warp][32 * e + lane] = unit[e];
  }
  __syncthreads();
  const std::int64_t row = head * in.num_blocks + blockIdx.x;
  const float count = block.y > 0 ? static_cast<float>(block.y) : 1;
  float squares = 0;
  for (int d = threadIdx.x; d < in.head_dim; d += blockDim.x) {
    const float total = sums[0][d] + sums[1][d] + sums[2][d] + sums[3][d];
    const float direction = units[0][d] + units[1][d] + units[2][d] + units[3][d];
    means[row * in.head_dim + d] = total / count;
    squares += direction * direction;
  }
  __syncthreads();
  squares = warp_sum(squares);
  if (lane == 0) sums[warp][0] = squares;
  __syncthreads();
  if (similarity && threadIdx.x == 0) {
    similarity[row] = (sums[0][0] + sums[1][0] + sums[2][0] + sums[3][0]) / (count * count);
  }
}

struct LogitShape {
  int heads_per_kv_head, num_kv_heads;
  int num_q_blocks, num_kv_blocks, head_dim;
  float scale;
  int log_count_block;  // adds log(count / this) to short kv blocks; 0: does not
  const int2 *q_blocks, *kv_blocks;
};

// logits [batch, heads, q_blocks, kv_blocks] of the means; 0 at empty blocks.
// Grid (q_blocks, heads, batch).
__global__ void pooled_logits_kernel(LogitShape shape, const float* q_means, const float* k_means,
                                     float* logits) {
  const std::int64_t head = blockIdx.z * gridDim.y + blockIdx.y;
  const std::int64_t kv_head =
      blockIdx.z * shape.num_kv_heads + blockIdx.y / shape.heads_per_kv_head;
  const std::int64_t row = head * shape.num_q_blocks + blockIdx.x;
  const float* q = q_means + row * shape.head_dim;
  const bool empty = shape.q_blocks[blockIdx.z * shape.num_q_blocks + blockIdx.x].y == 0;
  for (int j = threadIdx.x; j < shape.num_kv_blocks; j += blockDim.x) {
    const int count = shape.kv_blocks[blockIdx.z * shape.num_kv_blocks + j].y;
    const float* k = k_means + (kv_head * shape.num_kv_blocks + j) * shape.head_dim;
    float sum = 0;
    for (int d = 0; d < shape.head_dim; ++d) sum += q[d] * k[d];
    sum *= shape.scale;
    if (shape.log_count_block > 0 && count > 0) {
      sum += logf(static_cast<float>(count) / static_cast<float>(shape.log_count_block));
    }
    logits[row * shape.num_kv_blocks + j] = empty || count == 0 ? 0 : sum;
  }
}

}  // namespace flashomni::cuda
