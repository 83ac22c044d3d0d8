// policy_pool.cuh -- means and self-similarities of the blocks of Q and K: one pass over both.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/fragment.cuh"
#include "backend/cuda/device/load.cuh"
#include "backend/cuda/device/warp.cuh"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

inline constexpr int kPoolThreads = 256, kMostPooledDims = 256;

// The numbers in 16 bytes of a row.
template <typename T>
struct RowChunk {
  static constexpr int kSize = 16 / sizeof(T);
  static __device__ void widen(uint4 bits, float (&values)[kSize]) {
    const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        values[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = unpack<T>(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
};

// Sums over the tokens of a block of one (item, head): a thread holds 16 bytes of every
// `rows_at_once`-th row.
template <typename T, bool kSimilarity>
struct BlockSums {
  static constexpr int kSize = RowChunk<T>::kSize;
  float sum[kSize] = {}, unit[kSimilarity ? kSize : 1] = {};

  // The bits of rows that are none are 0. Nothing is subtracted without kSimilarity: the mean of
  // K, if it is to go, is then taken off the means.
  __device__ void add(uint4 bits) {
    static_assert(!kSimilarity);
    float values[kSize];
    RowChunk<T>::widen(bits, values);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum[e] += values[e];
  }
  // `valid` may differ between the threads that share a warp, not between those of a row.
  __device__ void add(uint4 bits, bool valid, const float (&subtract)[kSize], int row_threads) {
    float values[kSize], squares = 0;
    RowChunk<T>::widen(bits, values);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      values[e] = valid ? values[e] - subtract[e] : 0;
      sum[e] += values[e];
      squares += values[e] * values[e];
    }
    for (int distance = row_threads / 2; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(~0u, squares, distance);
    }
    const float norm = sqrtf(squares), inverse = norm > 0 ? 1 / norm : 0;
#pragma unroll
    for (int e = 0; e < kSize; ++e) unit[e] += values[e] * inverse;
  }
};

// Adds up what the threads of a block hold of the same columns; column d in thread d.
template <int kSize>
__device__ float sum_columns(const float (&mine)[kSize], int row_threads, int head_dim,
                             float (*partial)[kMostPooledDims]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    float x = mine[e];
    for (int distance = row_threads; distance < 32; distance *= 2) {
      x += __shfl_xor_sync(~0u, x, distance);
    }
    const int column = lane * kSize + e;
    if (lane < row_threads && column < head_dim) partial[warp][column] = x;
  }
  __syncthreads();
  float total = 0;
  if (threadIdx.x < head_dim) {
    for (int w = 0; w < kPoolThreads / 32; ++w) total += partial[w][threadIdx.x];
  }
  __syncthreads();
  return total;
}

// Grid (heads, q blocks + kv blocks, batch): neighbouring heads are neighbours in memory.
template <typename T, bool kSimilarity>
__global__ void __launch_bounds__(kPoolThreads) pool_kernel(const PoolParams params) {
  __shared__ float partial[kPoolThreads / 32][kMostPooledDims];
  constexpr int kSize = RowChunk<T>::kSize, kLoads = 8;
  release_next_kernel();
  const bool is_q = blockIdx.y < params.q.grid.num_blocks;
  const PoolInput& in = is_q ? params.q : params.k;
  const int index = is_q ? blockIdx.y : blockIdx.y - params.q.grid.num_blocks;
  const int head = blockIdx.x, item = blockIdx.z;
  if (head >= in.num_heads) return;
  const std::int64_t row = item * in.num_heads + head;
  const int4 block = in.grid.blocks[item * in.grid.num_blocks + index];
  const int tokens = block.y;

  const int row_threads = 1 << params.log2_row_threads;
  const int rows_at_once = kPoolThreads >> params.log2_row_threads;
  const int first = threadIdx.x >> params.log2_row_threads;
  const int column = (threadIdx.x & (row_threads - 1)) * kSize;
  const bool in_row = column < params.head_dim;
  const T* from = static_cast<const T*>(in.data) + item * in.batch_stride +
                  (block.x + first) * in.token_stride + head * in.head_stride + column;
  const std::int64_t step = rows_at_once * in.token_stride;
  await_previous_kernel();
  float subtract[kSize] = {};
  if (kSimilarity && in.subtract && in_row) {
    for (int e = 0; e < kSize; ++e) subtract[e] = in.subtract[row * params.head_dim + column + e];
  }
  BlockSums<T, kSimilarity> sums;
  for (int t = first; t - first < tokens; t += kLoads * rows_at_once) {
    uint4 bits[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      bits[i] = load_if(in_row && t + i * rows_at_once < tokens, from);
      from += step;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if constexpr (kSimilarity) {
        sums.add(bits[i], in_row && t + i * rows_at_once < tokens, subtract, row_threads);
      } else {
        sums.add(bits[i]);
      }
    }
  }

  const float count = tokens > 0 ? static_cast<float>(tokens) : 1;
  const float total = sum_columns(sums.sum, row_threads, params.head_dim, partial);
  if (threadIdx.x < params.head_dim) {
    in.means[row * in.mean_head + index * in.mean_block + threadIdx.x * in.mean_dim] =
        total / count;
  }
  if constexpr (kSimilarity) {
    const float direction = sum_columns(sums.unit, row_threads, params.head_dim, partial);
    const float squares = warp_sum(direction * direction);
    if (threadIdx.x % 32 == 0) partial[0][threadIdx.x / 32] = squares;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float similarity = 0;
    for (int w = 0; w < kPoolThreads / 32; ++w) similarity += partial[0][w];
    in.similarity[row * in.grid.num_blocks + index] = similarity / (count * count);
  }
}

// Takes the mean over an item's tokens off the means of its K blocks, [head_dim, leading] of each
// (item, head); leaves it in `head_means` [batch, heads, head_dim]. Grid (heads, batch).
__global__ void __launch_bounds__(kPoolThreads)
    center_kernel(const PoolInput in, int head_dim, float* head_means) {
  const int item = blockIdx.y, lane = threadIdx.x % 32;
  release_next_kernel();
  await_previous_kernel();
  const std::int64_t row = item * in.num_heads + blockIdx.x;
  const int4* blocks = in.grid.blocks + item * in.grid.num_blocks;
  const int valid = in.grid.counts[item].x;
  for (int d = threadIdx.x / 32; d < head_dim; d += kPoolThreads / 32) {
    float* means = in.means + row * in.mean_head + d * in.mean_dim;
    float sum = 0, tokens = 0;
    for (int b = lane; b < valid; b += 32) {
      const auto count = static_cast<float>(blocks[b].y);
      sum += count * means[b];
      tokens += count;
    }
    sum = warp_sum(sum);
    tokens = warp_sum(tokens);
    const float mean = tokens > 0 ? sum / tokens : 0;
    for (int b = lane; b < valid; b += 32) means[b] -= mean;
    if (lane == 0) head_means[row * head_dim + d] = mean;
  }
}

}  // namespace flashomni::cuda
