#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"
#include "plan/cached_blocks.h"

namespace flashomni {
namespace {

index_t token_offset(ConstTensorView x, index_t item, index_t token, index_t head) {
  return item * x.stride(0) + token * x.stride(1) + head * x.stride(2);
}

// One head of K or V at the tokens that a query block keeps, in token order.
using Rows = std::vector<std::vector<float>>;

Rows kept_rows(const AttentionPlan& plan, const AttentionItem& item, ConstTensorView x,
               index_t head) {
  Rows rows;
  for (std::int32_t n = 0; n < item.num_kv; ++n) {
    const Block block = plan.kv_grid.at(item.batch, plan.kv_blocks[item.first_kv + n]);
    for (index_t t = block.start; t < block.start + block.count; ++t) {
      rows.push_back(load_row(x, token_offset(x, item.batch, t, head), x.size(3)));
    }
  }
  return rows;
}

// out = softmax(scale * q k^T) v for one query; returns the log-sum-exp. No rows: 0 and -inf.
float attend(const std::vector<float>& q, const Rows& k, const Rows& v, float scale,
             std::vector<float>& out) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  std::fill(out.begin(), out.end(), 0.0f);
  if (k.empty()) return kMinusInfinity;

  std::vector<float> weights(k.size());
  float row_max = kMinusInfinity;
  for (std::size_t t = 0; t < k.size(); ++t) {
    weights[t] = scale * dot(q, k[t]);
    row_max = std::max(row_max, weights[t]);
  }
  float row_sum = 0;
  for (float& weight : weights) {
    weight = std::exp(weight - row_max);
    row_sum += weight;
  }
  for (std::size_t t = 0; t < v.size(); ++t) {
    for (std::size_t d = 0; d < out.size(); ++d) out[d] += weights[t] * v[t][d];
  }
  for (float& x : out) x /= row_sum;
  return row_max + std::log(row_sum);
}

void reuse_cached(const AttentionPlan& plan, const AttentionReuse& reuse, TensorView out) {
  for (const CachedBlock& block : cached_blocks(plan)) {
    for (index_t t = block.rows.start; t < block.rows.start + block.rows.count; ++t) {
      std::vector<float> row(out.size(3), 0.0f);
      for (std::size_t o = 0; o < reuse.terms.size(); ++o) {
        const ConstTensorView& term = reuse.terms[o];
        const auto values =
            load_row(term, token_offset(term, block.batch, t, block.head), out.size(3));
        for (std::size_t d = 0; d < row.size(); ++d) row[d] += reuse.coefficients[o] * values[d];
      }
      store_row(out, token_offset(out, block.batch, t, block.head), row);
    }
  }
}

}  // namespace

void ReferenceBackend::attention(const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
                                 ConstTensorView v, float scale, TensorView out, TensorView lse,
                                 Stream, const AttentionReuse& reuse) {
  const index_t heads_per_kv_head = plan.num_heads / k.size(2);
  std::vector<float> row(q.size(3));
  for (const AttentionItem& item : plan.items) {
    const Rows keys = kept_rows(plan, item, k, item.head / heads_per_kv_head);
    const Rows values = kept_rows(plan, item, v, item.head / heads_per_kv_head);
    const Block block = plan.q_grid.at(item.batch, item.q_block);
    for (index_t t = block.start; t < block.start + block.count; ++t) {
      const auto query = load_row(q, token_offset(q, item.batch, t, item.head), q.size(3));
      const float log_sum = attend(query, keys, values, scale, row);
      store_row(out, token_offset(out, item.batch, t, item.head), row);
      if (lse) {
        store_float(lse, item.batch * lse.stride(0) + item.head * lse.stride(1) + t * lse.stride(2),
                    log_sum);
      }
    }
  }
  if (!reuse.terms.empty()) reuse_cached(plan, reuse, out);
}

}  // namespace flashomni
