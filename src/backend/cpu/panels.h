// panels.h -- a packed weight as panels, and the product of some rows with one of them.
//
// Packed order: [panel][depth][64] of f32, or [panel][depth / 2][64][2] of bf16, where a panel is
// 64 output features (of one column group, if there are groups), zero-padded.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>

#include "backend/cpu/context.h"
#include "flashomni/plan.h"

namespace flashomni::cpu {

class Panels {
 public:
  explicit Panels(const PackedWeight& weight)
      : data_(weight.storage.as<const char>()),
        element_(size_in_bytes(weight.storage.dtype())),
        depth_(weight.storage.size(1)),
        group_(weight.column_group ? weight.column_group : weight.out_features),
        panels_per_group_((group_ + kPanel - 1) / kPanel),
        num_panels_(static_cast<int>(weight.storage.size(0))) {}

  int count() const { return num_panels_; }
  int per_group() const { return static_cast<int>(panels_per_group_); }
  // The output features of a panel are [first_column, first_column + num_columns).
  index_t first_column(int panel) const {
    return panel / panels_per_group_ * group_ + panel % panels_per_group_ * kPanel;
  }
  int num_columns(int panel) const {
    return static_cast<int>(std::min<index_t>(kPanel, group_ - panel % panels_per_group_ * kPanel));
  }
  // Row k (even, if bf16) of a panel.
  const void* at(int panel, index_t k) const {
    return data_ + (panel * depth_ + k) * kPanel * element_;
  }

 private:
  const char* data_;
  index_t element_, depth_, group_, panels_per_group_;
  int num_panels_;
};

// `depth` columns of an operand from `a` on, against rows k .. k + depth of a weight.
struct KSlice {
  const void* a = nullptr;  // the tile's first row
  index_t a_stride = 0;
  index_t k = 0, depth = 0;
};

// Where a tile starts from and where it goes: PanelJob's init and c.
struct TileMemory {
  const float* init = nullptr;
  index_t init_stride = 0;
  float* c = nullptr;
  index_t c_stride = 0;
};

// c = init + the sum over `slices`, for one panel. The sum runs in one order, k by k, however the
// slices are cut, so equal operands give equal bits whichever operator asked.
void multiply(const ProductKernels& kernels, const Panels& panels, int panel,
              std::span<const KSlice> slices, int rows, TileMemory memory);

// Lengths along K that the kernels take: multiples of 1 (f32) or 2 (bf16 pairs).
inline index_t whole_depth(const ProductKernels& kernels, index_t depth) {
  return kernels.operand == DType::kBF16 ? (depth + 1) / 2 * 2 : depth;
}

// A matrix operand [batch, rows, columns] or [rows, columns] as the kernels read it.
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  index_t batch_stride = 0, row_stride = 0;  // in elements
  const void* at(index_t item, index_t row, index_t column) const {
    return static_cast<const char*>(data) +
           (item * batch_stride + row * row_stride + column) * size_in_bytes(dtype);
  }
};

// `x` in place if the kernels can read it; otherwise a copy in `scratch`, widened to f32 or
// zero-padded to whole pairs.
Operand as_operand(Context& context, ConstTensorView x, const ProductKernels& kernels,
                   Scratch& scratch);

// The bias as whole panels, so that kernels may read all 64 columns; zeros without a bias.
const float* padded_bias(Context& context, const Panels& panels, ConstTensorView bias);

// Rows of an output matrix [batch, rows, columns] or [rows, columns].
struct OutputRows {
  explicit OutputRows(TensorView x)
      : view(x),
        batch_stride(x.rank() == 3 ? x.stride(0) : 0),
        row_stride(x.stride(x.rank() - 2)) {}
  Destination at(index_t batch, index_t row, index_t column) const {
    const index_t offset = batch * batch_stride + row * row_stride + column;
    return {static_cast<char*>(view.data) + offset * size_in_bytes(view.dtype), row_stride,
            view.dtype};
  }
  // Whether a kernel may sum straight into memory: whole panels of f32.
  bool sums_in_place(int columns) const { return view.dtype == DType::kF32 && columns == kPanel; }

  TensorView view;
  index_t batch_stride, row_stride;
};

// Row blocks of a plan cut into tiles of nearly equal height, tile_rows at most.
void cut_row_blocks(const GemmPlan& plan, int tile_rows, std::vector<RowTile>& tiles);

// Calls body(row_tile, first, last, worker) over all row tiles and all of `count` columns of work
// (panels, heads), cut so that every thread gets about 16 tasks and uneven ones even out.
template <typename Body>
void for_each_tile(ThreadPool& pool, index_t row_tiles, index_t count, const Body& body) {
  constexpr index_t kTasksPerThread = 16;
  if (row_tiles == 0 || count == 0) return;
  const index_t tasks = kTasksPerThread * pool.num_threads();
  const index_t step = std::clamp<index_t>(row_tiles * count / tasks, 1, count);
  const index_t steps = (count + step - 1) / step;
  pool.parallel_for(row_tiles * steps, [&](index_t task, int worker) {
    const index_t first = task % steps * step;
    body(task / steps, static_cast<int>(first), static_cast<int>(std::min(first + step, count)),
         worker);
  });
}

}  // namespace flashomni::cpu
