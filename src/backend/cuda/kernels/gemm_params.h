// gemm_params.h -- what the projection kernels are told; built by gemm.cu.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>  // CUtensorMap

#include <cstdint>

#include "backend/cuda/kernels/gemm_tile.h"

namespace flashomni::cuda {

// What a projection computes; all are D = A W^T with tiles of 128 x 256.
enum class GemmKind {
  kLinear,    // every tile, activation(D + bias)
  kHeads,     // GEMM-Q: a tile's columns are live heads of its row block
  kUpdate,    // GEMM-O: the sum over cached heads goes to the bias cache, then on over the others
  kDispatch,  // GEMM-O: the forecast of the bias cache plus the sum over live heads
};

// One weight and what its product becomes; kHeads has up to three for one A.
inline constexpr int kMaxProjections = 3;
struct ProjectionParams {
  CUtensorMap w_map;    // [out_features, in_features], 128 rows x 64; 64 of kHeads, shares_weight
  CUtensorMap out_map;  // [batch, rows, out_features], 64 rows x 64, x 32 of a residual; unused if
                        // out_is_f32
  const void* tiles;    // GemmTile or HeadTile; kLinear: none, see wide_tiles
  int num_tiles;
  const std::int32_t* tiles_counted;  // kHeads: how many instead, num_tiles at most; or nullptr
  int out_features;
  const std::int32_t* heads;
  const float* bias;  // [out_features] or nullptr
  void* out;
  std::int64_t out_batch_stride, out_row_stride;
  const float* norm_weight;  // kHeads: [head_dim] or nullptr
  const float *cos, *sin;    // kHeads: [rows, head_dim / 2] or nullptr
  std::int64_t rope_stride;
  float eps;
};

// Every pointer is device memory. Leading sizes and strides are in elements.
struct GemmParams {
  CUtensorMap a_map;    // [batch, rows, in_features], box of 64 rows x 64 columns; 128 of HeadTile
  CUtensorMap mlp_map;  // [batch, rows, mlp_dim], likewise, if mlp_slices > 0
  CUtensorMap term_maps[3];  // bias cache [batch, rows, out_features], 64 rows x 64; f32: x 32
  ProjectionParams projections[kMaxProjections];  // the first, but of kHeads

  int num_tiles;           // of all projections; kHeads: at most
  int column_tiles, rows;  // kLinear: row tile i / column_tiles, 2 x 256 columns;
  int wide_tiles;          // from this tile on, one such tile falls into two of 2 x 128
  int shares_weight;  // kLinear: a tile is two row tiles x 256 columns (128 from wide_tiles on)

  int slices;           // kLinear, kHeads: 64-column slices of in_features
  int slices_per_head;  // kUpdate, kDispatch
  int mlp_slices, mlp_column;

  int activation;     // of kLinear: Activation as int
  int out_is_f32;     // kLinear only
  int adds;           // kUpdate, kDispatch: `out` is a residual, f32, to add gate * value to
  const float* gate;  // [out_features] or nullptr = 1

  void* terms[3];  // bias cache, [batch, rows, out_features] contiguous, f32 or the type of `out`
  std::int64_t term_batch_stride;
  const std::uint8_t* valid_order;  // [batch, num_q_blocks] of the last update, or nullptr
  int num_q_blocks;
  int order;              // kUpdate: highest order kept, -1: none; kDispatch: highest to use
  float coefficients[3];  // kDispatch
  float inverse_steps;    // kUpdate: 1 / steps since the last update
};

}  // namespace flashomni::cuda
