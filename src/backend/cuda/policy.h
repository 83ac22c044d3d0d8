// policy.h -- block scores, and symbols chosen by them, on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "flashomni/backend.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/grid_table.h"

namespace flashomni::cuda {

// Q and K of a layer, and how to cut them.
struct PoolingInputs {
  ConstTensorView q, k;
  const BlockGrid &q_grid, &kv_grid;
};

// The means and similarities of the blocks of Q and K, with their memory. Calls on one object are
// to be ordered by streams; shapes that were seen before allocate nothing.
class PooledBlocks {
 public:
  // What a call is called in errors. Throws kUnsupported for rows that are not whole multiples of
  // 16 bytes, or longer than 512 bytes or 256 numbers.
  void pool(const char* operation, const PoolingInputs& in, const BlockScoreOptions& options,
            cudaStream_t stream);

  const MapParams& map() const { return map_; }
  const float* q_similarity() const { return q_similarity_.as<float>(); }
  const float* k_similarity() const { return k_similarity_.as<float>(); }

 private:
  GridTables grids_;
  MapParams map_{};
  DeviceBuffer q_means_, k_means_, head_means_, q_similarity_, k_similarity_;
};

// Backend::block_scores. Waits for the device: scores are host vectors. Throws kUnsupported as pool
// does, and for more kv blocks than shared memory holds.
class BlockScorer {
 public:
  void run(const PoolingInputs& in, const BlockScoreOptions& options, BlockScores& scores,
           cudaStream_t stream);

 private:
  PooledBlocks pooled_;
  DeviceBuffer logits_;
};

// Backend::select_symbols; one for each SymbolWords. Throws kUnsupported as pool does, and for more
// blocks than shared memory holds.
class SymbolSelector {
 public:
  void run(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options, double ramp,
           SymbolWords& words, const ScoreViews& scores, cudaStream_t stream);

 private:
  PooledBlocks pooled_;
  DeviceBuffer text_rows_, text_columns_, counters_;
};

}  // namespace flashomni::cuda
