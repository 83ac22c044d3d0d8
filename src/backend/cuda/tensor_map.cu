#include "backend/cuda/tensor_map.h"

#include <cstdint>
#include <string>

#include "backend/cuda/check_cuda.h"

namespace flashomni::cuda {
namespace {

// The driver's encoder, asked for at run time so that the library links without libcuda.
auto find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  FO_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    FO_FAIL(kCuda, "cuda backend: the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

void check_alignment(const TmaTensor& tensor) {
  const auto is_whole = [](auto bytes) { return bytes % 16 == 0; };
  const index_t element = size_in_bytes(tensor.dtype);
  bool fits = is_whole(reinterpret_cast<std::uintptr_t>(tensor.data));
  for (int axis = 1; axis < tensor.rank; ++axis) {
    fits = fits && (tensor.sizes[axis] == 1 || is_whole(tensor.strides[axis] * element));
  }
  if (!fits) {
    FO_FAIL(kUnsupported,
            "cuda backend: a tensor of %s with %lld x %lld elements and strides of %lld elements "
            "begins or steps at an address that is no multiple of 16 bytes; copy it",
            std::string(dtype_name(tensor.dtype)).c_str(), static_cast<long long>(tensor.sizes[1]),
            static_cast<long long>(tensor.sizes[0]), static_cast<long long>(tensor.strides[1]));
  }
}

CUtensorMap make_tensor_map(const TmaTensor& tensor, int row_axis, int rows) {
  static const auto encode = find_encoder();
  check_alignment(tensor);
  const auto element = static_cast<cuuint64_t>(size_in_bytes(tensor.dtype));
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4] = {1, 1, 1, 1}, steps[4] = {1, 1, 1, 1};
  for (int axis = 0; axis < tensor.rank; ++axis) {
    sizes[axis] = static_cast<cuuint64_t>(tensor.sizes[axis]);
    if (axis == 0) continue;
    const auto bytes = static_cast<cuuint64_t>(tensor.strides[axis]) * element;
    strides[axis - 1] = tensor.sizes[axis] == 1 ? (bytes + 15) / 16 * 16 : bytes;
  }
  box[0] = static_cast<cuuint32_t>(128 / element);
  box[row_axis] = static_cast<cuuint32_t>(rows);
  const auto type = tensor.dtype == DType::kF32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                    : tensor.dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  const CUresult status =
      encode(&map, type, static_cast<cuuint32_t>(tensor.rank), const_cast<void*>(tensor.data),
             sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    FO_FAIL(kCuda, "cuda backend: no tensor map for sizes %lld x %lld, strides %lld (error %d)",
            static_cast<long long>(tensor.sizes[0]), static_cast<long long>(tensor.sizes[1]),
            static_cast<long long>(tensor.strides[1]), static_cast<int>(status));
  }
  return map;
}

}  // namespace flashomni::cuda
