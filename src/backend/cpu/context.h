// context.h -- what every operator of one cpu backend shares: threads, kernels, scratch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/thread_pool.h"

namespace flashomni::cpu {

// Rows [row, row + rows) of item `batch` of a matrix, part of row block `block` of a plan.
struct RowTile {
  index_t batch = 0, row = 0;
  int rows = 0;
  std::size_t block = 0;
};

struct Context {
  Context(int num_threads, const Executor* executor)
      : pool(num_threads, executor), worker_scratch(pool.num_threads()) {}

  // The kernels for operands of `dtype`: bf16 where the set multiplies it, else f32 (widened).
  const ProductKernels& products(DType dtype) const {
    return dtype == DType::kBF16 && bf16 ? *bf16 : f32;
  }

  ThreadPool pool;
  const RowKernels* rows = nullptr;
  ProductKernels f32;
  const ProductKernels* bf16 = nullptr;  // nullptr: bf16 is widened to f32
  WorkerScratch worker_scratch;
  Scratch operands[2];  // converted operands of the running call: x; o, mlp; q
  Scratch padded_bias;
  Scratch packed_keys, packed_values;
  std::vector<RowTile> row_tiles;
  std::vector<int> kv_starts;
  std::vector<char> used_blocks;  // [batch, kv heads, kv blocks]: some row attends to it
};

}  // namespace flashomni::cpu
