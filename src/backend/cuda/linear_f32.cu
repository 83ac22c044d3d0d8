#include "backend/cuda/linear_f32.h"

#include "backend/cuda/check_cuda.h"
#include "backend/cuda/kernels/linear_f32.cuh"

namespace flashomni::cuda {

void launch_linear_f32(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                       Activation activation, TensorView out, cudaStream_t stream) {
  if (x.size(0) == 0 || weight.out_features == 0) return;
  const LinearF32Params params{x.as<float>(),
                               weight.storage.as<float>(),
                               bias.as<float>(),
                               out.as<float>(),
                               x.stride(0),
                               out.stride(0),
                               static_cast<int>(x.size(0)),
                               static_cast<int>(weight.in_features),
                               static_cast<int>(weight.out_features),
                               static_cast<int>(activation)};
  const auto tiles = [](index_t size) {
    return static_cast<unsigned>((size + kLinearF32Tile - 1) / kLinearF32Tile);
  };
  linear_f32_kernel<<<dim3(tiles(weight.out_features), tiles(x.size(0))), kLinearF32Threads, 0,
                      stream>>>(params);
  FO_CUDA(cudaGetLastError());
}

}  // namespace flashomni::cuda
