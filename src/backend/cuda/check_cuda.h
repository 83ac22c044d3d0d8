// check_cuda.h -- CUDA errors as exceptions, and device memory with an owner.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "core/check.h"

// Throws Error(kCuda) naming the call.
#define FO_CUDA(call)                                                             \
  do {                                                                            \
    const cudaError_t fo_cuda_status = (call);                                    \
    if (fo_cuda_status != cudaSuccess) [[unlikely]]                               \
      FO_FAIL(kCuda, "%s failed: %s", #call, cudaGetErrorString(fo_cuda_status)); \
  } while (false)

namespace flashomni::cuda {

// Device memory that only grows. Contents are lost when it does.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { release(); }

  // Returns whether the memory is new.
  bool reserve(std::size_t bytes) {
    if (bytes <= bytes_) return false;
    release();
    bytes_ = 0;
    FO_CUDA(cudaMalloc(&data_, bytes));
    bytes_ = bytes;
    return true;
  }
  // Room for `count` values.
  template <typename T>
  T* reserve(std::size_t count) {
    reserve(std::max<std::size_t>(1, count) * sizeof(T));
    return as<T>();
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  // Not for nothing: any cudaFree ends a capture.
  void release() {
    if (data_) cudaFree(std::exchange(data_, nullptr));
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Copies `from` to the device behind what the stream holds; `from` may go at once.
template <typename T>
void upload(const std::vector<T>& from, DeviceBuffer& to, cudaStream_t stream) {
  FO_CUDA(cudaMemcpyAsync(to.reserve<T>(from.size()), from.data(), from.size() * sizeof(T),
                          cudaMemcpyHostToDevice, stream));
}

}  // namespace flashomni::cuda
