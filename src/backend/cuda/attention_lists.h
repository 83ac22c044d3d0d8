// attention_lists.h -- the lists of an attention plan, made on the device from symbols there.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "flashomni/selection.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/grid_table.h"
#include "backend/cuda/kernels/attention_lists_params.h"
#include "backend/cuda/pieces.h"

namespace flashomni::cuda {

// What the attention kernel reads.
struct AttentionLists {
  DeviceBuffer pieces;       // AttentionPiece [..]
  DeviceBuffer starts;       // AttentionStart [num_sms]
  DeviceBuffer first_of_sm;  // i32 [num_sms + 1]; made on the device only
  DeviceBuffer kv_blocks;    // i32
  DeviceBuffer kv_table;     // int2 [batch, kv_blocks]
  DeviceBuffer cached;       // CachedRows [..]; made on the device, one a row of the grid
};

// Makes the lists that build_attention_plan and cut_into_pieces would make.
class AttentionListBuilder {
 public:
  // Enqueues; waits for nothing. The first call for grids allocates, the next ones do not. Returns
  // how many partial results the pieces may need: as many as these grids ever do.
  // Throws kUnsupported for more than 256 multiprocessors or rows than shared memory holds.
  int build(const SymbolWords& words, const CutOptions& options, AttentionLists& lists,
            cudaStream_t stream);

  // The lists of the last build as the host knows them; waits. For tests.
  void read_back(const AttentionLists& lists, AttentionPlan& plan, Pieces& pieces,
                 cudaStream_t stream) const;

 private:
  AttentionListsParams params_{};
  GridTables grids_;
  DeviceBuffer counts_, totals_, items_, parts_, num_parts_, parts_of_, slots_;
};

}  // namespace flashomni::cuda
