// scratch.h -- memory that kernels use between calls: grows to the largest shape seen, never
// shrinks.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "flashomni/tensor.h"

namespace flashomni::cpu {

// One aligned buffer. Its contents do not survive growth.
class Scratch {
 public:
  void* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      memory_ = Tensor();  // free first: the old contents are not needed
      memory_ = Tensor::host(DType::kU8, Layout{static_cast<index_t>(bytes)});
      capacity_ = bytes;
    }
    return memory_.as<void>();
  }
  void* data() const { return memory_.as<void>(); }

 private:
  Tensor memory_;
  std::size_t capacity_ = 0;
};

// One buffer for each worker of a pool.
class WorkerScratch {
 public:
  explicit WorkerScratch(int num_workers) : buffers_(static_cast<std::size_t>(num_workers)) {}
  void reserve(std::size_t bytes) {
    for (Scratch& buffer : buffers_) buffer.reserve(bytes);
  }
  void* of(int worker) const { return buffers_[static_cast<std::size_t>(worker)].data(); }

 private:
  std::vector<Scratch> buffers_;
};

}  // namespace flashomni::cpu
