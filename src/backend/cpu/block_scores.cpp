#include "backend/cpu/block_scores.h"

#include <algorithm>
#include <cmath>

namespace flashomni::cpu {
namespace {

// One of Q and K: where its blocks' means and similarities go.
struct Pooling {
  ConstTensorView x;
  const BlockGrid& grid;
  bool subtract_mean;
  float* means;         // [batch, heads, blocks, head_dim]
  float* similarities;  // [batch, heads, blocks], or nullptr

  index_t head_dim() const { return x.size(3); }
  index_t num_heads() const { return x.size(2); }
  float* mean(index_t item, index_t head, index_t block) const {
    return means + ((item * num_heads() + head) * grid.num_blocks() + block) * head_dim();
  }
};

// Rows of one head, widened to fp32 one at a time.
class HeadRows {
 public:
  HeadRows(const Context& context, const Pooling& pooling, int item, index_t head, float* scratch)
      : rows_(*context.rows), x_(pooling.x), row_(scratch), token_mean_(scratch + x_.size(3)) {
    offset_ = item * x_.stride(0) + head * x_.stride(2);
    std::fill_n(token_mean_, x_.size(3), 0.0f);
    if (!pooling.subtract_mean) return;
    const int length = pooling.grid.length(item);
    float* sum = row_ + 2 * x_.size(3);
    std::fill_n(sum, x_.size(3), 0.0f);
    for (int token = 0; token < length; ++token) {
      rows_.add_scaled(at(token), 1.0f / static_cast<float>(length), sum, x_.size(3));
    }
    std::copy_n(sum, x_.size(3), token_mean_);
    is_shifted_ = true;
  }

  const float* at(index_t token) const {
    const char* from = static_cast<const char*>(x_.data) +
                       (offset_ + token * x_.stride(1)) * size_in_bytes(x_.dtype);
    rows_.widen(from, x_.dtype, row_, x_.size(3));
    if (is_shifted_) rows_.add_scaled(token_mean_, -1.0f, row_, x_.size(3));
    return row_;
  }

 private:
  const RowKernels& rows_;
  const ConstTensorView& x_;
  float *row_, *token_mean_;
  index_t offset_ = 0;
  bool is_shifted_ = false;
};

// Mean over all pairs of tokens of a block of their cosine: |sum of unit vectors|^2 / count^2.
float similarity(const RowKernels& rows, const HeadRows& head, Block block, index_t head_dim,
                 float* sum) {
  if (block.count == 0) return 0;
  std::fill_n(sum, head_dim, 0.0f);
  for (int token = block.start; token < block.start + block.count; ++token) {
    const float* row = head.at(token);
    const float norm = std::sqrt(rows.dot(row, row, head_dim));
    if (norm > 0) rows.add_scaled(row, 1.0f / norm, sum, head_dim);
  }
  const auto count = static_cast<float>(block.count);
  return rows.dot(sum, sum, head_dim) / (count * count);
}

void pool(Context& context, const Pooling& pooling) {
  const index_t head_dim = pooling.head_dim(), num_heads = pooling.num_heads();
  const int num_blocks = pooling.grid.num_blocks();
  context.worker_scratch.reserve(static_cast<std::size_t>(3 * head_dim) * sizeof(float));
  context.pool.parallel_for(pooling.grid.batch() * num_heads, [&](index_t i, int worker) {
    const int item = static_cast<int>(i / num_heads);
    float* scratch = static_cast<float*>(context.worker_scratch.of(worker));
    const HeadRows head(context, pooling, item, i % num_heads, scratch);
    for (int index = 0; index < num_blocks; ++index) {
      const Block block = pooling.grid.at(item, index);
      float* mean = pooling.mean(item, i % num_heads, index);
      std::fill_n(mean, head_dim, 0.0f);
      for (int token = block.start; token < block.start + block.count; ++token) {
        context.rows->add_scaled(head.at(token), 1.0f / static_cast<float>(block.count), mean,
                                 head_dim);
      }
      if (!pooling.similarities) continue;
      pooling.similarities[i * num_blocks + index] =
          similarity(*context.rows, head, block, head_dim, scratch + 2 * head_dim);
    }
  });
}

// The logits of one head, [q_blocks, kv_blocks].
void fill_logits(const RowKernels& rows, const Pooling& queries, const Pooling& keys, int item,
                 index_t head, const BlockScoreOptions& options, float* logits) {
  const index_t head_dim = queries.head_dim();
  const index_t kv_head = head / (queries.num_heads() / keys.num_heads());
  const float scale =
      options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int num_kv_blocks = keys.grid.num_blocks();
  for (int pair = 0; pair < queries.grid.num_blocks() * num_kv_blocks; ++pair) {
    const int q_block = pair / num_kv_blocks, kv_block = pair % num_kv_blocks;
    const int count = keys.grid.at(item, kv_block).count;
    logits[pair] = 0;
    if (count == 0 || queries.grid.at(item, q_block).count == 0) continue;
    logits[pair] = scale * rows.dot(queries.mean(item, head, q_block),
                                    keys.mean(item, kv_head, kv_block), head_dim);
    if (!options.log_count_bias) continue;
    logits[pair] += std::log(static_cast<float>(count) / static_cast<float>(keys.grid.block()));
  }
}

}  // namespace

void block_scores(Context& context, ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                  const BlockGrid& kv_grid, const BlockScoreOptions& options, BlockScores& scores) {
  const index_t head_dim = q.size(3), num_heads = q.size(2), num_kv_heads = k.size(2);
  scores.batch = q_grid.batch();
  scores.num_heads = static_cast<int>(num_heads);
  scores.num_q_blocks = q_grid.num_blocks();
  scores.num_kv_blocks = kv_grid.num_blocks();
  const index_t q_rows = scores.batch * num_heads * scores.num_q_blocks;
  const index_t k_rows = scores.batch * num_kv_heads * scores.num_kv_blocks;
  const index_t k_similarities = scores.batch * num_heads * scores.num_kv_blocks;
  scores.logits.resize(static_cast<std::size_t>(q_rows * scores.num_kv_blocks));
  scores.q_similarity.resize(static_cast<std::size_t>(options.similarity ? q_rows : 0));
  scores.k_similarity.resize(static_cast<std::size_t>(options.similarity ? k_similarities : 0));

  // Means of Q, means of K, similarities of the K heads.
  float* memory = static_cast<float*>(context.operands[0].reserve(
      static_cast<std::size_t>((q_rows + k_rows) * head_dim + k_rows) * sizeof(float)));
  float* k_similarity = memory + (q_rows + k_rows) * head_dim;
  const Pooling queries{q, q_grid, false, memory,
                        options.similarity ? scores.q_similarity.data() : nullptr};
  const Pooling keys{k, kv_grid, options.subtract_k_mean, memory + q_rows * head_dim,
                     options.similarity ? k_similarity : nullptr};
  pool(context, queries);
  pool(context, keys);

  context.pool.parallel_for(scores.batch * num_heads, [&](index_t i, int) {
    const index_t item = i / num_heads, head = i % num_heads;
    fill_logits(*context.rows, queries, keys, static_cast<int>(item), head, options,
                scores.logits.data() + i * scores.num_q_blocks * scores.num_kv_blocks);
    if (!options.similarity) return;
    const index_t kv_head = item * num_kv_heads + head / (num_heads / num_kv_heads);
    std::copy_n(k_similarity + kv_head * scores.num_kv_blocks, scores.num_kv_blocks,
                scores.k_similarity.data() + i * scores.num_kv_blocks);
  });
}

}  // namespace flashomni::cpu
