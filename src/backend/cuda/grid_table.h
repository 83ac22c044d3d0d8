// grid_table.h -- a BlockGrid in device memory, uploaded when it changes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "flashomni/symbols.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/kernels/policy_params.h"

namespace flashomni::cuda {

// The tables of a layer's two grids.
class GridTables {
 public:
  // Uploads them unless they are those of the last call, and then allocates only if they grew.
  void assign(const BlockGrid& q_grid, const BlockGrid& kv_grid, cudaStream_t stream);

  const GridTable& q() const { return q_table_; }
  const GridTable& kv() const { return kv_table_; }

 private:
  BlockGrid q_grid_, kv_grid_;
  GridTable q_table_{}, kv_table_{};
  DeviceBuffer memory_;
};

}  // namespace flashomni::cuda
