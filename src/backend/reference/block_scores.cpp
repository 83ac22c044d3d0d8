#include <cmath>

#include "backend/reference/reference.h"
#include "backend/reference/rows.h"

namespace flashomni {
namespace {

// The tokens of one head and item, [length][head_dim].
using Rows = std::vector<std::vector<float>>;

Rows head_rows(ConstTensorView x, index_t item, index_t head, int length) {
  Rows rows;
  for (index_t t = 0; t < length; ++t) {
    rows.push_back(
        load_row(x, item * x.stride(0) + t * x.stride(1) + head * x.stride(2), x.size(3)));
  }
  return rows;
}

std::vector<float> mean_of(const Rows& rows, Block block, index_t head_dim) {
  std::vector<float> mean(head_dim);
  for (int t = block.start; t < block.start + block.count; ++t) {
    for (index_t d = 0; d < head_dim; ++d) mean[d] += rows[t][d];
  }
  if (block.count > 0) {
    for (float& x : mean) x /= static_cast<float>(block.count);
  }
  return mean;
}

void subtract_mean(Rows& rows, index_t head_dim) {
  const auto mean = mean_of(rows, {0, static_cast<int>(rows.size())}, head_dim);
  for (auto& row : rows) {
    for (index_t d = 0; d < head_dim; ++d) row[d] -= mean[d];
  }
}

// Mean over all ordered pairs of tokens, a token with itself included, of their cosine:
// |sum of unit vectors|^2 / count^2. A zero token has cosine 0 with everything.
float similarity_of(const Rows& rows, Block block, index_t head_dim) {
  std::vector<float> sum(head_dim);
  for (int t = block.start; t < block.start + block.count; ++t) {
    const float norm = std::sqrt(dot(rows[t], rows[t]));
    for (index_t d = 0; norm > 0 && d < head_dim; ++d) sum[d] += rows[t][d] / norm;
  }
  const auto count = static_cast<float>(block.count);
  return block.count == 0 ? 0.0f : dot(sum, sum) / (count * count);
}

// What block_scores knows of one head of Q or K: per block the mean and the self-similarity.
struct PooledHead {
  Rows means;
  std::vector<float> similarity;
};

PooledHead pool(const Rows& rows, const BlockGrid& grid, int item, index_t head_dim) {
  PooledHead pooled;
  for (int index = 0; index < grid.num_blocks(); ++index) {
    pooled.means.push_back(mean_of(rows, grid.at(item, index), head_dim));
    pooled.similarity.push_back(similarity_of(rows, grid.at(item, index), head_dim));
  }
  return pooled;
}

void append(std::vector<float>& to, const std::vector<float>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void ReferenceBackend::block_scores(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                                    const BlockGrid& kv_grid, const BlockScoreOptions& options,
                                    BlockScores& scores, Stream) {
  const index_t head_dim = q.size(3), heads_per_kv_head = q.size(2) / k.size(2);
  const float scale =
      options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  scores = {q_grid.batch(),
            static_cast<int>(q.size(2)),
            q_grid.num_blocks(),
            kv_grid.num_blocks(),
            {},
            {},
            {}};

  const auto logit = [&](int item, int i, int j, const PooledHead& q, const PooledHead& k) {
    const int count = kv_grid.at(item, j).count;
    if (count == 0 || q_grid.at(item, i).count == 0) return 0.0f;
    const float bias = std::log(static_cast<float>(count) / static_cast<float>(kv_grid.block()));
    return scale * dot(q.means[i], k.means[j]) + (options.log_count_bias ? bias : 0.0f);
  };
  for (int item = 0; item < scores.batch; ++item) {
    for (int head = 0; head < scores.num_heads; ++head) {
      Rows keys = head_rows(k, item, head / heads_per_kv_head, kv_grid.length(item));
      if (options.subtract_k_mean) subtract_mean(keys, head_dim);
      const Rows queries = head_rows(q, item, head, q_grid.length(item));
      const PooledHead pooled_k = pool(keys, kv_grid, item, head_dim);
      const PooledHead pooled_q = pool(queries, q_grid, item, head_dim);
      for (int pair = 0; pair < scores.num_q_blocks * scores.num_kv_blocks; ++pair) {
        scores.logits.push_back(logit(item, pair / scores.num_kv_blocks,
                                      pair % scores.num_kv_blocks, pooled_q, pooled_k));
      }
      if (!options.similarity) continue;
      append(scores.q_similarity, pooled_q.similarity);
      append(scores.k_similarity, pooled_k.similarity);
    }
  }
}

}  // namespace flashomni
