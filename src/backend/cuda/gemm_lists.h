// gemm_lists.h -- the lists and tiles of a projection's plan, made on the device from symbols
// there.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "flashomni/selection.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/kernels/gemm_lists_params.h"

namespace flashomni::cuda {

// Tiles on the device.
struct TileList {
  DeviceBuffer tiles;
  int num_tiles = 0;   // at most, if they were counted on the device
  DeviceBuffer count;  // i32: how many
  bool is_counted = false;
  int made_for = 0;  // head_dim, or output features; 0: not made
};

// Makes the lists that build_gemm_plan and tiles.h would make. All calls enqueue and wait for
// nothing; the first ones for shapes allocate, the next ones do not.
class GemmListBuilder {
 public:
  // Head lists go to `heads`. What depends on the shapes alone, row_blocks but for their heads
  // among it, is in shape() afterwards. Throws as build_gemm_plan does.
  void build(const SymbolWords& words, int first_token, int num_tokens, const SymbolWords* previous,
             DeviceBuffer& heads, cudaStream_t stream);
  const GemmPlan& shape() const { return shape_; }

  // From the lists of the last build. Throws kUnsupported for more heads or row blocks than one
  // thread block can hold.
  void make_head_tiles(int num_clusters, TileList& list, cudaStream_t stream) const;
  void make_row_tiles(int heads_per_tile, TileList& list, cudaStream_t stream) const;
  void make_column_tiles(int out_features, int num_clusters, TileList& list,
                         cudaStream_t stream) const;

  // The lists of the last build as the host knows them; waits. For tests.
  void read_back(GemmPlan& plan, cudaStream_t stream) const;

 private:
  void set_shape(const SymbolWords& words, int first_token, int num_tokens, cudaStream_t stream);

  BlockGrid q_grid_;
  int first_token_ = 0;
  GemmPlan shape_;
  GemmListsParams params_{};
  DeviceBuffer rows_, live_;
};

// The tiles of a list; waits. For tests.
template <typename Tile>
std::vector<Tile> read_back(const TileList& list, cudaStream_t stream) {
  std::int32_t count = list.num_tiles;
  if (list.is_counted) {
    FO_CUDA(cudaMemcpyAsync(&count, list.count.as<void>(), sizeof count, cudaMemcpyDeviceToHost,
                            stream));
    FO_CUDA(cudaStreamSynchronize(stream));
  }
  std::vector<Tile> tiles(count);
  FO_CUDA(cudaMemcpyAsync(tiles.data(), list.tiles.as<void>(), count * sizeof(Tile),
                          cudaMemcpyDeviceToHost, stream));
  FO_CUDA(cudaStreamSynchronize(stream));
  return tiles;
}

}  // namespace flashomni::cuda
