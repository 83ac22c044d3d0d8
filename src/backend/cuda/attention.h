// attention.h -- launches block-sparse attention on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "flashomni/backend.h"
#include "flashomni/plan.h"
#include "flashomni/tensor.h"

#include "backend/cuda/attention_lists.h"
#include "backend/cuda/check_cuda.h"
#include "backend/cuda/pieces.h"

namespace flashomni::cuda {

// The tensors of flashomni::attention, on the device.
struct AttentionTensors {
  ConstTensorView q, k, v;
  TensorView out, lse;
  float scale = 1;
  AttentionReuse reuse;
};

// The lists of an attention plan on the device, with the scratch of one launch at a time.
class DeviceAttentionPlan {
 public:
  // Copies the lists of `plan`, cut into pieces; reuses storage. To be called on the stream of the
  // launches before.
  void assign(const AttentionPlan& plan, const CutOptions& options, cudaStream_t stream);

  // Makes them on the device from symbols there; waits for nothing.
  void assign(const SymbolWords& words, const CutOptions& options, cudaStream_t stream);

  // The contract of flashomni::attention; `plan` as assigned. Throws kUnsupported if there is no
  // kernel for `arch` (compute capability, 90 for 9.0), the dtype, head_dim or block sizes.
  void launch(const AttentionPlan& plan, const AttentionTensors& tensors, int arch,
              cudaStream_t stream);

 private:
  void reserve_counters(cudaStream_t stream);
  // The rows that are not computed, once a launch by lists of the host asks for them.
  void list_cached_rows(const AttentionPlan& plan, cudaStream_t stream);

  Pieces pieces_;  // scratch
  AttentionListBuilder builder_;
  AttentionLists lists_;
  int num_pieces_ = 0;  // at most
  int num_sms_ = 0, num_slots_ = 0;
  int num_cached_ = -1;  // at most; -1: not listed yet
  DeviceBuffer counters_, partials_, kv_maps_;
};

}  // namespace flashomni::cuda
