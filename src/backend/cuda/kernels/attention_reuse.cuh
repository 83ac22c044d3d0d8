// attention_reuse.cuh -- forecasts for the rows that attention_sm90.cuh does not compute.
//
// The warps that neither load nor schedule write them while the others multiply, and the consumers
// help once they have no piece left. A thread block has every gridDim-th of the cached blocks; its
// warps take 16 rows of them at a time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/fragment.cuh"
#include "backend/cuda/kernels/attention_params.h"

namespace flashomni::cuda {

// One warp.
template <typename Kernel>
struct AttentionReuser {
  using T = typename Kernel::Element;
  static constexpr int kHeadDim = Kernel::kHeadDim;
  static constexpr int kRows = 16;
  static constexpr int kEach = 4;  // elements of a lane at a time
  static constexpr int kRowsAStep = 32 * kEach / kHeadDim;
  static constexpr int kSteps = kRows / kRowsAStep;

  const AttentionParams& params;
  int lane;

  // Loads that no one needs again.
  __device__ float4 load(const AttentionReuseTerm& term, std::int64_t at) const {
    if (params.reuse.terms_are_f32) {
      return __ldcs(reinterpret_cast<const float4*>(static_cast<const float*>(term.data) + at));
    }
    const auto* words = reinterpret_cast<const uint2*>(static_cast<const T*>(term.data) + at);
    const uint2 four = __ldcs(words);
    const float2 low = unpack<T>(four.x), high = unpack<T>(four.y);
    return {low.x, low.y, high.x, high.y};
  }

  // Rows row, row + kRowsAStep, ... of a block, kAtOnce of them, with a term's loads in flight
  // together.
  template <int kAtOnce>
  __device__ void write(const CachedRows& block, int row, int column) const {
    float4 sum[kAtOnce] = {};
#pragma unroll 1
    for (int o = 0; o < params.reuse.num_terms; ++o) {
      const AttentionReuseTerm& term = params.reuse.terms[o];
      const std::int64_t at = block.batch * term.batch_stride + block.head * term.head_stride +
                              (block.row + row) * term.row_stride + column;
      float4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        values[i] = {0, 0, 0, 0};
        if (row + i * kRowsAStep >= block.num_rows) continue;
        values[i] = load(term, at + i * kRowsAStep * static_cast<int>(term.row_stride));
      }
      const float factor = params.reuse.coefficients[o];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        sum[i].x = fmaf(factor, values[i].x, sum[i].x);
        sum[i].y = fmaf(factor, values[i].y, sum[i].y);
        sum[i].z = fmaf(factor, values[i].z, sum[i].z);
        sum[i].w = fmaf(factor, values[i].w, sum[i].w);
      }
    }
    T* to = static_cast<T*>(params.out) + block.batch * params.out_batch_stride +
            (block.row + row) * params.out_row_stride + block.head * params.out_head_stride +
            column;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (row + i * kRowsAStep >= block.num_rows) continue;
      *reinterpret_cast<uint2*>(to + i * kRowsAStep * static_cast<int>(params.out_row_stride)) = {
          pack<T>(sum[i].x, sum[i].y), pack<T>(sum[i].z, sum[i].w)};
    }
  }

  // `next` counts the parts that the block's warps have taken.
  template <int kAtOnce>
  __device__ void run(int* next) const {
    constexpr int kParts = Kernel::kTileQ / kRows;
    while (params.reuse.num_blocks > 0) {
      int part = 0;
      if (lane == 0) part = atomicAdd(next, 1);
      part = __shfl_sync(~0u, part, 0);
      const int block = part / kParts * gridDim.x + blockIdx.x;
      if (block >= params.reuse.num_blocks) return;
      const CachedRows rows = params.reuse.blocks[block];
      if (rows.num_rows == 0) return;
      const int first = part % kParts * kRows + lane * kEach / kHeadDim;
#pragma unroll 1
      for (int step = 0; step < kSteps; step += kAtOnce) {
        write<kAtOnce>(rows, first + step * kRowsAStep, lane * kEach % kHeadDim);
      }
    }
  }
};

}  // namespace flashomni::cuda
