#include "backend/cpu/panels.h"

#include <cstring>

#include "backend/cpu/gemm.h"
#include "core/half.h"

namespace flashomni::cpu {
namespace {

// Depth of the B block that is read again for every six rows: 32 KiB, two thirds of a 48 KiB L1.
constexpr int kDepthBytes = 128 * sizeof(float);
constexpr int kMaxPieces = 32;  // heads of at least 8 columns in a block of 256

class PieceList {
 public:
  explicit PieceList(const ProductKernels& kernels)
      : element_(size_in_bytes(kernels.operand)),
        max_depth_(static_cast<int>(kDepthBytes / element_)) {}

  bool empty() const { return count_ == 0; }
  bool full() const { return depth_ == max_depth_ || count_ == kMaxPieces; }
  // Takes what fits of `slice` from its column `done` on; returns how much that is.
  index_t add(const Panels& panels, int panel, const KSlice& slice, index_t done) {
    const int depth = static_cast<int>(std::min<index_t>(slice.depth - done, max_depth_ - depth_));
    pieces_[count_++] = {static_cast<const char*>(slice.a) + done * element_, slice.a_stride,
                         panels.at(panel, slice.k + done), depth};
    depth_ += depth;
    return depth;
  }
  void clear() { count_ = depth_ = 0; }
  const KPiece* data() const { return pieces_; }
  int count() const { return count_; }

 private:
  index_t element_;
  int max_depth_, count_ = 0, depth_ = 0;
  KPiece pieces_[kMaxPieces];
};

// Element (column, k) of the weight, rounded to `dtype`; 0 in the padding.
class RoundedWeight {
 public:
  RoundedWeight(ConstTensorView weight, DType dtype) : weight_(weight), dtype_(dtype) {}
  float operator()(index_t column, index_t k) const {
    if (k >= weight_.size(1)) return 0;
    const float value = load_float(weight_, column * weight_.stride(0) + k * weight_.stride(1));
    return dispatch_float(dtype_,
                          [&](auto type) { return to_float(from_float<decltype(type)>(value)); });
  }

 private:
  ConstTensorView weight_;
  DType dtype_;
};

void pack_panel(const RoundedWeight& weight, const Panels& panels, int panel, index_t depth,
                DType operand, void* packed) {
  const int columns = panels.num_columns(panel);
  const index_t first = panels.first_column(panel);
  for (index_t k = 0; k < depth; ++k) {
    for (int column = 0; column < kPanel; ++column) {
      const float value = column < columns ? weight(first + column, k) : 0.0f;
      if (operand == DType::kF32) {
        static_cast<float*>(packed)[k * kPanel + column] = value;
      } else {
        static_cast<BFloat16*>(packed)[(k / 2 * kPanel + column) * 2 + k % 2] = to_bfloat16(value);
      }
    }
  }
}

}  // namespace

void multiply(const ProductKernels& kernels, const Panels& panels, int panel,
              std::span<const KSlice> slices, int rows, TileMemory memory) {
  PieceList pieces(kernels);
  const auto flush = [&](const void* next_b) {
    kernels.panel({pieces.data(), pieces.count(), rows, memory.init, memory.init_stride, memory.c,
                   memory.c_stride, next_b});
    memory.init = memory.c;
    memory.init_stride = memory.c_stride;
    pieces.clear();
  };
  // The panel that is likely to be next begins with the same slices.
  const void* next_panel =
      slices.empty() ? panels.at(panel, 0) : panels.at(panel + 1, slices.front().k);
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const KSlice& slice = slices[i];
    for (index_t done = 0; done < slice.depth;) {
      done += pieces.add(panels, panel, slice, done);
      if (!pieces.full()) continue;
      const bool ends = done == slice.depth;
      if (ends && i + 1 == slices.size()) break;  // the last flush, below
      flush(ends ? panels.at(panel, slices[i + 1].k) : panels.at(panel, slice.k + done));
    }
  }
  if (!pieces.empty() || memory.init != memory.c) flush(next_panel);
}

PackedWeight pack_weight(Context& context, ConstTensorView weight, DType dtype, int column_group) {
  PackedWeight packed;
  packed.out_features = weight.size(0);
  packed.in_features = weight.size(1);
  packed.dtype = dtype;
  packed.column_group = column_group;
  const DType operand = context.products(dtype).operand;
  const index_t group = column_group ? column_group : packed.out_features;
  const index_t num_groups = (packed.out_features + group - 1) / group;
  const index_t num_panels = num_groups * ((group + kPanel - 1) / kPanel);
  const index_t depth = (packed.in_features + 1) / 2 * 2;
  packed.storage = Tensor::host(operand, Layout{num_panels, depth, kPanel});

  const Panels panels(packed);
  const RoundedWeight rounded(weight, dtype);
  context.pool.parallel_for(num_panels, [&](index_t panel, int) {
    const int p = static_cast<int>(panel);
    pack_panel(rounded, panels, p, depth, operand, const_cast<void*>(panels.at(p, 0)));
  });
  return packed;
}

Operand as_operand(Context& context, ConstTensorView x, const ProductKernels& kernels,
                   Scratch& scratch) {
  const int rank = x.rank();
  const index_t columns = x.size(rank - 1), rows = x.size(rank - 2);
  const index_t items = rank == 3 ? x.size(0) : 1;
  const index_t item_stride = rank == 3 ? x.stride(0) : 0, row_stride = x.stride(rank - 2);
  const index_t depth = whole_depth(kernels, columns);
  if (x.dtype == kernels.operand && depth == columns) {
    return {x.data, x.dtype, item_stride, row_stride};
  }
  const index_t element = size_in_bytes(kernels.operand);
  char* copy =
      static_cast<char*>(scratch.reserve(static_cast<std::size_t>(items * rows * depth * element)));
  context.pool.parallel_for(items * rows, [&](index_t i, int) {
    const index_t offset = i / rows * item_stride + i % rows * row_stride;
    const char* from = static_cast<const char*>(x.data) + offset * size_in_bytes(x.dtype);
    char* to = copy + i * depth * element;
    if (kernels.operand == DType::kF32) {
      context.rows->widen(from, x.dtype, reinterpret_cast<float*>(to), columns);
    } else {
      std::memcpy(to, from, static_cast<std::size_t>(columns * element));
      std::memset(to + columns * element, 0, static_cast<std::size_t>((depth - columns) * element));
    }
  });
  return {copy, kernels.operand, rows * depth, depth};
}

const float* padded_bias(Context& context, const Panels& panels, ConstTensorView bias) {
  const auto bytes = static_cast<std::size_t>(panels.count()) * kPanel * sizeof(float);
  float* padded = static_cast<float*>(context.padded_bias.reserve(bytes));
  std::memset(padded, 0, bytes);
  if (!bias) return padded;
  for (int panel = 0; panel < panels.count(); ++panel) {
    std::memcpy(padded + panel * kPanel, bias.as<float>() + panels.first_column(panel),
                static_cast<std::size_t>(panels.num_columns(panel)) * sizeof(float));
  }
  return padded;
}

void cut_row_blocks(const GemmPlan& plan, int tile_rows, std::vector<RowTile>& tiles) {
  tiles.clear();
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    const RowBlock& block = plan.row_blocks[i];
    const int parts = (block.num_rows + tile_rows - 1) / tile_rows;
    const int height = (block.num_rows + parts - 1) / parts;
    for (int row = 0; row < block.num_rows; row += height) {
      tiles.push_back({block.batch, block.row + row, std::min(height, block.num_rows - row), i});
    }
  }
}

}  // namespace flashomni::cpu
