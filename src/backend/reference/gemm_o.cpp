#include <algorithm>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"

namespace flashomni {
namespace {

// Adds the parts of a projection to the sum of one row.
class RowSum {
 public:
  RowSum(const GemmPlan& plan, const OutputProjection& projection)
      : projection_(projection),
        mlp_dim_(projection.mlp ? projection.mlp.size(2) : 0),
        head_dim_((projection.weight->in_features - mlp_dim_) / plan.num_heads) {}

  void add_heads(index_t item, index_t row, std::span<const std::int32_t> heads,
                 std::vector<float>& sum) const {
    for (const index_t head : heads) {
      const index_t column = head * head_dim_;
      add(load_row(projection_.o, row_offset(projection_.o, item, row) + column, head_dim_), column,
          sum);
    }
  }

  void add_mlp(index_t item, index_t row, std::vector<float>& sum) const {
    if (!projection_.mlp) return;
    add(load_row(projection_.mlp, row_offset(projection_.mlp, item, row), mlp_dim_),
        projection_.weight->in_features - mlp_dim_, sum);
  }

 private:
  // sum += x W[:, first_column : first_column + size of x]^T
  void add(const std::vector<float>& x, index_t first_column, std::vector<float>& sum) const {
    const PackedWeight& weight = *projection_.weight;
    for (index_t feature = 0; feature < weight.out_features; ++feature) {
      sum[feature] += dot(x, load_row(weight.storage, feature * weight.in_features + first_column,
                                      static_cast<index_t>(x.size())));
    }
  }

  const OutputProjection& projection_;
  index_t mlp_dim_, head_dim_;
};

void write_row(const OutputProjection& projection, index_t item, index_t row,
               const std::vector<float>& value) {
  if (projection.out) {
    store_row(projection.out, row_offset(projection.out, item, row), value);
    return;
  }
  const TensorView& residual = projection.residual;
  float* sums = residual.as<float>() + row_offset(residual, item, row);
  for (std::size_t feature = 0; feature < value.size(); ++feature) {
    const float gate = projection.gate ? projection.gate.as<float>()[feature] : 1.0f;
    sums[feature] += gate * value[feature];
  }
}

// Replaces terms[0] of a row by `value`, and as many differences as `order` allows.
void push_row(const BiasCacheView& cache, index_t item, index_t row, int order, float steps,
              const std::vector<float>& value) {
  for (std::size_t feature = 0; feature < value.size(); ++feature) {
    float term = value[feature];
    for (int o = 0; o <= order; ++o) {
      const index_t offset = row_offset(cache.terms[o], item, row) + feature;
      const float old = load_float(cache.terms[o], offset);
      store_float(cache.terms[o], offset, term);
      term = (term - old) / steps;
    }
  }
}

}  // namespace

void ReferenceBackend::gemm_o_update(const GemmPlan& plan, const OutputProjection& projection,
                                     float steps_since_update, const BiasCacheView& cache, Stream) {
  const RowSum row_sum(plan, projection);
  for (std::size_t n = 0; n < plan.row_blocks.size(); ++n) {
    const RowBlock& block = plan.row_blocks[n];
    int order = 0;
    if (cache.order >= 0) {
      std::uint8_t& valid_order =
          cache.valid_order
              .as<std::uint8_t>()[block.batch * cache.valid_order.stride(0) + block.q_block];
      if (block.same_as_previous) order = std::min(valid_order + 1, cache.order);
      valid_order = static_cast<std::uint8_t>(order);
    }
    for (index_t row = block.row; row < block.row + block.num_rows; ++row) {
      std::vector<float> sum(projection.weight->out_features);
      if (projection.bias) {
        sum = load_row(projection.bias, 0, projection.weight->out_features);
      }
      row_sum.add_heads(block.batch, row, plan.cached_heads(n), sum);
      if (cache.order >= 0) push_row(cache, block.batch, row, order, steps_since_update, sum);
      row_sum.add_heads(block.batch, row, plan.live_heads(n), sum);
      row_sum.add_mlp(block.batch, row, sum);
      write_row(projection, block.batch, row, sum);
    }
  }
}

void ReferenceBackend::gemm_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                                       std::span<const float> coefficients,
                                       const BiasCacheView& cache, Stream) {
  const RowSum row_sum(plan, projection);
  for (std::size_t n = 0; n < plan.row_blocks.size(); ++n) {
    const RowBlock& block = plan.row_blocks[n];
    const int valid_order =
        cache.valid_order
            .as<std::uint8_t>()[block.batch * cache.valid_order.stride(0) + block.q_block];
    const int order = std::min(valid_order, static_cast<int>(coefficients.size()) - 1);
    for (index_t row = block.row; row < block.row + block.num_rows; ++row) {
      std::vector<float> sum(projection.weight->out_features);
      for (int o = 0; o <= order; ++o) {
        const index_t offset = row_offset(cache.terms[o], block.batch, row);
        for (std::size_t feature = 0; feature < sum.size(); ++feature) {
          sum[feature] += coefficients[o] * load_float(cache.terms[o], offset + feature);
        }
      }
      row_sum.add_heads(block.batch, row, plan.live_heads(n), sum);
      row_sum.add_mlp(block.batch, row, sum);
      write_row(projection, block.batch, row, sum);
    }
  }
}

}  // namespace flashomni
