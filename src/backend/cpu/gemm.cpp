#include "backend/cpu/gemm.h"

#include "backend/cpu/panels.h"

namespace flashomni::cpu {

void linear(Context& context, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            Activation activation, TensorView out) {
  const ProductKernels& kernels = context.products(weight.dtype);
  const Panels panels(weight);
  const Operand a = as_operand(context, x, kernels, context.operands[0]);
  const float* bias_rows = padded_bias(context, panels, bias);
  const index_t tile_rows = kernels.tile_rows;
  context.worker_scratch.reserve(static_cast<std::size_t>(tile_rows) * kPanel * sizeof(float));

  const OutputRows to(out);
  const index_t num_rows = x.size(0);
  const index_t depth = whole_depth(kernels, weight.in_features);
  const index_t row_tiles = (num_rows + tile_rows - 1) / tile_rows;
  for_each_tile(
      context.pool, row_tiles, panels.count(), [&](index_t tile, int first, int last, int worker) {
        const index_t row = tile * tile_rows;
        const int rows = static_cast<int>(std::min(tile_rows, num_rows - row));
        const KSlice slice{a.at(0, row, 0), a.row_stride, 0, depth};
        for (int panel = first; panel < last; ++panel) {
          const int columns = panels.num_columns(panel);
          const Destination target = to.at(0, row, panels.first_column(panel));
          const bool in_place = activation == Activation::kNone && to.sums_in_place(columns);
          float* c =
              static_cast<float*>(in_place ? target.data : context.worker_scratch.of(worker));
          const index_t c_stride = in_place ? target.stride : kPanel;
          multiply(kernels, panels, panel, {&slice, 1}, rows,
                   {bias_rows + panel * kPanel, 0, c, c_stride});
          if (!in_place) context.rows->store_tile(c, c_stride, rows, columns, activation, target);
        }
      });
}

namespace {

struct HeadProjection {
  Context& context;
  const ProductKernels& kernels;
  Panels panels;
  Operand x;
  index_t depth;
  int head_dim;
  const float* bias;
  const NormRope& epilogue;
  OutputRows out;

  // One head of one row tile: its panels side by side in `c`, then norm and rotation.
  void run(const RowTile& tile, int head, float* c) const {
    const int num_panels = panels.per_group();
    const index_t c_stride = num_panels * kPanel;
    const KSlice slice{x.at(tile.batch, tile.row, 0), x.row_stride, 0, depth};
    for (int i = 0; i < num_panels; ++i) {
      const int panel = head * num_panels + i;
      multiply(kernels, panels, panel, {&slice, 1}, tile.rows,
               {bias + panel * kPanel, 0, c + i * kPanel, c_stride});
    }
    if (epilogue.norm_weight || epilogue.cos) {
      context.rows->norm_rope_tile(c, c_stride, tile.rows, head_dim, epilogue_at(tile.row));
    }
    context.rows->store_tile(c, c_stride, tile.rows, head_dim, Activation::kNone,
                             out.at(tile.batch, tile.row, static_cast<index_t>(head) * head_dim));
  }

  NormRopeTile epilogue_at(index_t row) const {
    NormRopeTile tile;
    tile.norm_weight = epilogue.norm_weight.as<float>();
    tile.eps = epilogue.eps;
    if (epilogue.cos) {
      tile.cos_stride = epilogue.cos.stride(0);
      tile.sin_stride = epilogue.sin.stride(0);
      tile.cos = epilogue.cos.as<float>() + row * tile.cos_stride;
      tile.sin = epilogue.sin.as<float>() + row * tile.sin_stride;
    }
    return tile;
  }
};

}  // namespace

void gemm_q(Context& context, const GemmPlan& plan, ConstTensorView x, const PackedWeight& weight,
            ConstTensorView bias, const NormRope& epilogue, TensorView out) {
  const ProductKernels& kernels = context.products(weight.dtype);
  const Panels panels(weight);
  const HeadProjection projection{context,
                                  kernels,
                                  panels,
                                  as_operand(context, x, kernels, context.operands[0]),
                                  whole_depth(kernels, weight.in_features),
                                  weight.column_group,
                                  padded_bias(context, panels, bias),
                                  epilogue,
                                  OutputRows(out)};
  context.worker_scratch.reserve(static_cast<std::size_t>(panels.per_group() * kernels.tile_rows) *
                                 kPanel * sizeof(float));
  cut_row_blocks(plan, kernels.tile_rows, context.row_tiles);
  for_each_tile(context.pool, static_cast<index_t>(context.row_tiles.size()), plan.num_heads,
                [&](index_t i, int first, int last, int worker) {
                  const RowTile& tile = context.row_tiles[static_cast<std::size_t>(i)];
                  float* c = static_cast<float*>(context.worker_scratch.of(worker));
                  const auto heads = plan.live_heads(tile.block);
                  last = std::min(last, static_cast<int>(heads.size()));
                  for (int n = first; n < last; ++n)
                    projection.run(tile, heads[static_cast<std::size_t>(n)], c);
                });
}

}  // namespace flashomni::cpu
