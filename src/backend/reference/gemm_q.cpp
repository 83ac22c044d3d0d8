#include <cmath>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"

namespace flashomni {
namespace {

// RMS norm over the head, then rotation of the pairs (2i, 2i + 1) by the angles of `row`.
void norm_and_rotate(const NormRope& epilogue, index_t row, std::vector<float>& tile) {
  if (epilogue.norm_weight) {
    const float mean_square = dot(tile, tile) / static_cast<float>(tile.size());
    const float inverse_rms = 1.0f / std::sqrt(mean_square + epilogue.eps);
    for (std::size_t d = 0; d < tile.size(); ++d) {
      tile[d] *= inverse_rms * load_float(epilogue.norm_weight, static_cast<index_t>(d));
    }
  }
  if (!epilogue.cos) return;
  for (std::size_t i = 0; i < tile.size() / 2; ++i) {
    const float cos = load_float(epilogue.cos, row * epilogue.cos.stride(0) + i);
    const float sin = load_float(epilogue.sin, row * epilogue.sin.stride(0) + i);
    const float even = tile[2 * i], odd = tile[2 * i + 1];
    tile[2 * i] = even * cos - odd * sin;
    tile[2 * i + 1] = even * sin + odd * cos;
  }
}

}  // namespace

void ReferenceBackend::gemm_q(const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
                              ConstTensorView bias, const NormRope& epilogue, TensorView out,
                              Stream) {
  const index_t head_dim = weight.out_features / plan.num_heads;
  std::vector<float> tile(head_dim);
  for (std::size_t n = 0; n < plan.row_blocks.size(); ++n) {
    const RowBlock& block = plan.row_blocks[n];
    for (index_t row = block.row; row < block.row + block.num_rows; ++row) {
      const auto input = load_row(x, row_offset(x, block.batch, row), weight.in_features);
      for (const index_t head : plan.live_heads(n)) {
        for (index_t d = 0; d < head_dim; ++d) {
          const index_t feature = head * head_dim + d;
          const auto column =
              load_row(weight.storage, feature * weight.in_features, weight.in_features);
          tile[d] = dot(input, column) + (bias ? load_float(bias, feature) : 0.0f);
        }
        norm_and_rotate(epilogue, row, tile);
        store_row(out, row_offset(out, block.batch, row) + head * head_dim, tile);
      }
    }
  }
}

}  // namespace flashomni
