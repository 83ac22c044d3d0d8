// linear_f32.cuh -- a linear layer of f32 operands: the embedders and the last projection of a
// model, which are a thousandth of its work. Plain FMAs; nothing here is worth tensor cores.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace flashomni::cuda {

struct LinearF32Params {
  const float *x, *weight, *bias;  // [rows, in_features], [out_features, in_features], or nullptr
  float* out;                      // [rows, out_features]
  std::int64_t x_stride, out_stride;
  int rows, in_features, out_features;
  int activation;  // Activation
};

inline constexpr int kLinearF32Tile = 64, kLinearF32Threads = 256;

// Grid (out_features, rows) in tiles; a thread makes 4 x 4 outputs of a tile.
__global__ void __launch_bounds__(kLinearF32Threads) linear_f32_kernel(LinearF32Params params) {
  constexpr int kTile = kLinearF32Tile, kSlice = 16, kEach = 4, kThreadsAcross = kTile / kEach;
  __shared__ float x_tile[kSlice][kTile + 1], w_tile[kSlice][kTile + 1];
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int row = threadIdx.x / kThreadsAcross, column = threadIdx.x % kThreadsAcross;
  float sums[kEach * kEach] = {};
  for (int k0 = 0; k0 < params.in_features; k0 += kSlice) {
    for (int i = threadIdx.x; i < kTile * kSlice; i += blockDim.x) {
      const int k = i % kSlice, line = i / kSlice;
      const bool in_k = k0 + k < params.in_features;
      const int x_row = first_row + line, w_row = first_column + line;
      x_tile[k][line] =
          in_k && x_row < params.rows ? params.x[x_row * params.x_stride + k0 + k] : 0;
      w_tile[k][line] = in_k && w_row < params.out_features
                            ? params.weight[std::int64_t{w_row} * params.in_features + k0 + k]
                            : 0;
    }
    __syncthreads();
    for (int k = 0; k < kSlice; ++k) {
#pragma unroll
      for (int i = 0; i < kEach * kEach; ++i) {
        sums[i] += x_tile[k][row + i / kEach * kThreadsAcross] *
                   w_tile[k][column + i % kEach * kThreadsAcross];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach * kEach; ++i) {
    const int r = first_row + row + i / kEach * kThreadsAcross;
    const int c = first_column + column + i % kEach * kThreadsAcross;
    if (r >= params.rows || c >= params.out_features) continue;
    float value = sums[i] + (params.bias ? params.bias[c] : 0);
    constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;  // gelu, see gemm_sm90_epilogue.cuh
    const float u = kTwoRootTwoOverPi * (value + 0.044715f * value * value * value);
    if (params.activation == 1) value /= 1 + expf(-u);
    if (params.activation == 2) value /= 1 + expf(-value);
    params.out[r * params.out_stride + c] = value;
  }
}

}  // namespace flashomni::cuda
