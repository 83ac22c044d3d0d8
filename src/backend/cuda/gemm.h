// gemm.h -- launches the projections over live work, and dense ones, on a CUDA device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "flashomni/backend.h"
#include "flashomni/plan.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/gemm_lists.h"
#include "backend/cuda/kernels/gemm_params.h"

namespace flashomni::cuda {

// Where a launch goes.
struct LaunchTarget {
  int arch = 0;  // compute capability, 90 for 9.0
  int num_sms = 0;
  cudaStream_t stream = nullptr;
};

// The lists of a projection's plan on the device. Tiles are made when a projection first needs
// them.
class DeviceGemmPlan {
 public:
  // Forgets the lists of an earlier plan; keeps their storage.
  void reset();

  // Makes the lists on the device, and tiles for the projections that went by the lists before: so
  // a captured build holds all that captured projections need. Waits for nothing.
  void assign(const SymbolWords& words, int first_token, int num_tokens,
              const SymbolWords* previous, GemmPlan& plan, const LaunchTarget& target);

  // What launch_heads() tells its kernel of a projection by this plan.
  ProjectionParams head_params(const InputProjection& projection, const LaunchTarget& target);
  // The contracts of flashomni::gemm_o_update and gemm_o_dispatch.
  void launch_o_update(const GemmPlan& plan, const OutputProjection& projection,
                       float steps_since_update, const BiasCacheView& cache,
                       const LaunchTarget& target);
  void launch_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                         std::span<const float> coefficients, const BiasCacheView& cache,
                         const LaunchTarget& target);

 private:
  // The plan, or what is known of it here if its lists are on the device.
  const GemmPlan& shape_of(const GemmPlan& plan) const;
  void make_head_tiles(const GemmPlan& plan, int head_dim, const LaunchTarget& target);
  void make_output_tiles(const GemmPlan& plan, int out_features, const LaunchTarget& target);
  void upload_heads(const GemmPlan& plan, cudaStream_t stream);
  GemmParams output_params(const GemmPlan& plan, const OutputProjection& projection,
                           const BiasCacheView& cache, const LaunchTarget& target);

  GemmListBuilder builder_;
  TileList head_tiles_, output_tiles_;
  DeviceBuffer heads_;
  bool has_heads_ = false;
};

// The contract of Backend::gemm_qkv, in one launch, for up to kMaxProjections projections whose
// weights agree but for out_features. lists[i] belongs to the plan of projections[i].
void launch_heads(ConstTensorView x, std::span<const InputProjection> projections,
                  std::span<DeviceGemmPlan* const> lists, const LaunchTarget& target);

// The contract of Backend::linear.
void launch_linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                   Activation activation, TensorView out, const LaunchTarget& target);

}  // namespace flashomni::cuda
