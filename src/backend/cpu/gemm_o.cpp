// gemm_o.cpp -- the output projections of update and dispatch steps: one sum over K, entered at
// the bias (update) or at the forecast of the bias cache (dispatch).
#include "backend/cpu/gemm.h"
#include "backend/cpu/panels.h"
#include "core/check.h"

namespace flashomni::cpu {
namespace {

// Asks for the rows of a tile in the panel after this one: they lie too far apart for the processor
// to guess.
void fetch_next_columns(const float* first, index_t stride, int rows) {
  constexpr int kLine = 64 / sizeof(float);
  for (int r = 0; r < rows; ++r) {
    for (int line = 0; line < kPanel / kLine; ++line) {
      __builtin_prefetch(first + r * stride + kPanel + line * kLine, 1, kIntoL2);
    }
  }
}

struct CacheTerms {
  explicit CacheTerms(const BiasCacheView& cache) : cache(cache) {}
  float* at(int term, index_t batch, index_t row, index_t column) const {
    const TensorView& view = cache.terms[term];
    return view.as<float>() + batch * view.stride(0) + row * view.stride(1) + column;
  }
  void fetch_next_panel(int num_terms, const RowTile& tile, index_t column) const {
    for (int term = 0; term < num_terms; ++term) {
      fetch_next_columns(at(term, tile.batch, tile.row, column), cache.terms[term].stride(1),
                         tile.rows);
    }
  }
  std::uint8_t& valid_order(const RowBlock& block) const {
    return cache.valid_order
        .as<std::uint8_t>()[block.batch * cache.valid_order.stride(0) + block.q_block];
  }
  // The order that an update leaves behind.
  int next_order(const RowBlock& block) const {
    return block.same_as_previous ? std::min(valid_order(block) + 1, cache.order) : 0;
  }
  const BiasCacheView& cache;
};

class Projection {
 public:
  Projection(Context& context, const GemmPlan& plan, const OutputProjection& projection)
      : panels(*projection.weight),
        bias(padded_bias(context, panels, projection.bias)),
        context_(context),
        plan_(plan),
        kernels_(context.products(projection.weight->dtype)),
        adds_(projection.residual),
        out_(adds_ ? projection.residual : projection.out),
        gate_(projection.gate.as<float>()),
        o_(as_operand(context, projection.o, kernels_, context.operands[0])),
        head_dim_(projection.o.size(2) / plan.num_heads) {
    if (kernels_.operand == DType::kBF16 && head_dim_ % 2 != 0) {
      FO_FAIL(kUnsupported, "gemm_o: head_dim is %lld, the bf16 kernels take even ones",
              static_cast<long long>(head_dim_));
    }
    if (projection.mlp) {
      mlp_ = as_operand(context, projection.mlp, kernels_, context.operands[1]);
      mlp_depth_ = whole_depth(kernels_, projection.mlp.size(2));
    }
    context.worker_scratch.reserve(sums_bytes() +
                                   (static_cast<std::size_t>(plan.num_heads) + 1) * sizeof(KSlice));
  }

  // A worker's memory: the sums of the running tile, then its slices.
  float* sums_of(int worker) const {
    return static_cast<float*>(context_.worker_scratch.of(worker));
  }

  // Calls body(tile, panel, worker) for every row tile and panel.
  template <typename Body>
  void for_each_panel(const Body& body) const {
    std::vector<RowTile>& tiles = context_.row_tiles;
    cut_row_blocks(plan_, kernels_.tile_rows, tiles);
    for_each_tile(context_.pool, static_cast<index_t>(tiles.size()), panels.count(),
                  [&](index_t tile, int first, int last, int worker) {
                    for (int panel = first; panel < last; ++panel) {
                      body(tiles[static_cast<std::size_t>(tile)], panel, worker);
                    }
                  });
  }

  // sums = bias + cached heads
  void sum_cached(const RowTile& tile, int panel, int worker) const {
    KSlice* slices = slices_of(worker);
    const std::size_t count = add_heads(tile, plan_.cached_heads(tile.block), slices);
    multiply(kernels_, panels, panel, {slices, count}, tile.rows,
             {bias + panel * kPanel, 0, sums_of(worker), kPanel});
  }

  // out = init + live heads (+ mlp), or that is added to the residual
  void finish(const RowTile& tile, int panel, const float* init, index_t init_stride,
              int worker) const {
    KSlice* slices = slices_of(worker);
    std::size_t count = add_heads(tile, plan_.live_heads(tile.block), slices);
    if (mlp_depth_) {
      slices[count++] = {mlp_.at(tile.batch, tile.row, 0), mlp_.row_stride,
                         plan_.num_heads * head_dim_, mlp_depth_};
    }
    const Destination target = out_.at(tile.batch, tile.row, panels.first_column(panel));
    const int columns = panels.num_columns(panel);
    const bool in_place = !adds_ && out_.sums_in_place(columns);
    float* c = in_place ? static_cast<float*>(target.data) : sums_of(worker);
    const index_t c_stride = in_place ? target.stride : kPanel;
    if (in_place) fetch_next_columns(c, c_stride, tile.rows);
    multiply(kernels_, panels, panel, {slices, count}, tile.rows, {init, init_stride, c, c_stride});
    if (in_place) return;
    if (adds_) return add_to_residual(c, tile.rows, panel, target);
    context_.rows->store_tile(c, c_stride, tile.rows, columns, Activation::kNone, target);
  }

  const Panels panels;
  const float* const bias;

 private:
  void add_to_residual(const float* c, int rows, int panel, const Destination& target) const {
    const float* gate = gate_ ? gate_ + panels.first_column(panel) : nullptr;
    for (int r = 0; r < rows; ++r) {
      context_.rows->gated_add(c + r * kPanel, DType::kF32, gate,
                               static_cast<float*>(target.data) + r * target.stride,
                               panels.num_columns(panel));
    }
  }

  std::size_t sums_bytes() const {
    return static_cast<std::size_t>(kernels_.tile_rows) * kPanel * sizeof(float);
  }

  KSlice* slices_of(int worker) const {
    return reinterpret_cast<KSlice*>(static_cast<char*>(context_.worker_scratch.of(worker)) +
                                     sums_bytes());
  }
  std::size_t add_heads(const RowTile& tile, std::span<const std::int32_t> heads,
                        KSlice* slices) const {
    for (std::size_t i = 0; i < heads.size(); ++i) {
      const index_t k = heads[i] * head_dim_;
      slices[i] = {o_.at(tile.batch, tile.row, k), o_.row_stride, k, head_dim_};
    }
    return heads.size();
  }

  Context& context_;
  const GemmPlan& plan_;
  const ProductKernels& kernels_;
  const bool adds_;
  const OutputRows out_;
  const float* const gate_;  // or nullptr
  Operand o_, mlp_;
  index_t head_dim_, mlp_depth_ = 0;
};

}  // namespace

void gemm_o_update(Context& context, const GemmPlan& plan, const OutputProjection& projection,
                   float steps_since_update, const BiasCacheView& cache) {
  const Projection run(context, plan, projection);
  const CacheTerms terms(cache);
  run.for_each_panel([&](const RowTile& tile, int panel, int worker) {
    if (cache.order < 0 && plan.cached_heads(tile.block).empty()) {
      run.finish(tile, panel, run.bias + panel * kPanel, 0, worker);
      return;
    }
    run.sum_cached(tile, panel, worker);
    const float* sums = run.sums_of(worker);
    if (cache.order >= 0) {
      const int order = terms.next_order(plan.row_blocks[tile.block]);
      const index_t column = run.panels.first_column(panel);
      terms.fetch_next_panel(order + 1, tile, column);
      for (int r = 0; r < tile.rows; ++r) {
        float* rows[kMaxForecastOrder + 1];
        for (int term = 0; term <= order; ++term) {
          rows[term] = terms.at(term, tile.batch, tile.row + r, column);
        }
        context.rows->push_differences(sums + r * kPanel, order, steps_since_update, rows,
                                       run.panels.num_columns(panel));
      }
    }
    run.finish(tile, panel, sums, kPanel, worker);
  });
  if (cache.order < 0) return;
  for (const RowBlock& block : plan.row_blocks) {
    terms.valid_order(block) = static_cast<std::uint8_t>(terms.next_order(block));
  }
}

void gemm_o_dispatch(Context& context, const GemmPlan& plan, const OutputProjection& projection,
                     std::span<const float> coefficients, const BiasCacheView& cache) {
  const Projection run(context, plan, projection);
  const CacheTerms terms(cache);
  run.for_each_panel([&](const RowTile& tile, int panel, int worker) {
    const RowBlock& block = plan.row_blocks[tile.block];
    const int num_terms =
        std::min<int>(terms.valid_order(block) + 1, static_cast<int>(coefficients.size()));
    const index_t column = run.panels.first_column(panel);
    const int columns = run.panels.num_columns(panel);
    terms.fetch_next_panel(num_terms, tile, column);
    if (num_terms == 1 && coefficients[0] == 1.0f && columns == kPanel) {
      run.finish(tile, panel, terms.at(0, tile.batch, tile.row, column), cache.terms[0].stride(1),
                 worker);
      return;
    }
    float* sums = run.sums_of(worker);
    for (int r = 0; r < tile.rows; ++r) {
      const float* rows[kMaxForecastOrder + 1];
      for (int term = 0; term < num_terms; ++term) {
        rows[term] = terms.at(term, tile.batch, tile.row + r, column);
      }
      context.rows->combine(rows, coefficients.data(), num_terms, columns, sums + r * kPanel,
                            DType::kF32);
    }
    run.finish(tile, panel, sums, kPanel, worker);
  });
}

}  // namespace flashomni::cpu
