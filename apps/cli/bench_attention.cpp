// bench_attention.cpp -- the jobs `attention` and `policy`.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <vector>

#include "bench_jobs.h"
#include "flashomni/attention.h"
#include "flashomni/policy.h"

namespace flashomni::cli {
namespace {

constexpr int kSampledRows = 16;

struct AttentionOperands {
  AttentionOperands(Backend& backend, const BenchShape& shape, const MaskRequest& mask)
      : shape(shape),
        symbols(make_symbols(shape.seq_len, shape.text_tokens, shape.block, shape.num_heads, mask)),
        scale(static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)))) {
    const Layout layout{1, shape.seq_len, shape.num_heads, shape.head_dim};
    q_host = random_tensor(layout, shape.dtype, 1);
    k_host = random_tensor(layout, shape.dtype, 2);
    v_host = random_tensor(layout, shape.dtype, 3);
    q = upload(backend, q_host);
    k = upload(backend, k_host);
    v = upload(backend, v_host);
    out = backend.allocate(shape.dtype, layout);
    backend.build_attention_plan(symbols, plan, {});
    SparseSymbols all = symbols;
    all.set_all_live();
    backend.build_attention_plan(all, dense_plan, {});
  }

  BenchShape shape;
  SparseSymbols symbols;
  float scale;
  Tensor q_host, k_host, v_host, q, k, v, out;
  AttentionPlan plan, dense_plan;
};

// One row of attention in fp64.
std::vector<double> attend_row(const AttentionOperands& operands, const float* q, const float* k,
                               const float* v, int head, int token) {
  const BlockGrid& grid = operands.symbols.q_grid();
  const int dim = operands.shape.head_dim, width = operands.shape.inner_dim();
  int q_block = 0;
  while (grid.at(0, q_block).start + grid.at(0, q_block).count <= token) ++q_block;
  std::vector<double> sum(static_cast<std::size_t>(dim), 0.0);
  double weights = 0;
  for (int kv_block = 0; kv_block < grid.num_blocks(); ++kv_block) {
    if (!operands.symbols.is_used(0, head, q_block, kv_block)) continue;
    const Block block = grid.at(0, kv_block);
    for (int t = block.start; t < block.start + block.count; ++t) {
      const float *row = q + token * width + head * dim, *key = k + t * width + head * dim;
      double logit = 0;
      for (int d = 0; d < dim; ++d) logit += static_cast<double>(row[d]) * key[d];
      const double weight =
          std::exp(logit * operands.scale);  // |logit| is small: values in [-1, 1)
      weights += weight;
      for (int d = 0; d < dim; ++d) sum[d] += weight * v[t * width + head * dim + d];
    }
  }
  for (double& value : sum) value /= weights;
  return sum;
}

double sampled_error(Backend& backend, const AttentionOperands& operands) {
  const Tensor q = convert(operands.q_host, DType::kF32), k = convert(operands.k_host, DType::kF32),
               v = convert(operands.v_host, DType::kF32), out = download_f32(backend, operands.out);
  const BlockGrid& grid = operands.symbols.q_grid();
  Random random(9);
  RelativeError error;
  for (int checked = 0; checked < kSampledRows;) {
    const int head = random.below(operands.shape.num_heads), i = random.below(grid.num_blocks());
    if (!operands.symbols.is_live(0, head, i)) continue;
    const int token = grid.at(0, i).start + random.below(grid.at(0, i).count);
    const auto expected =
        attend_row(operands, q.as<float>(), k.as<float>(), v.as<float>(), head, token);
    const float* actual =
        out.as<float>() + token * operands.shape.inner_dim() + head * operands.shape.head_dim;
    for (int d = 0; d < operands.shape.head_dim; ++d) error.add(actual[d], expected[d]);
    ++checked;
  }
  return error.value();
}

}  // namespace

BenchJob attention_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<AttentionOperands>(backend, shape, mask);
  const auto run = [&backend, operands](const AttentionPlan& plan) {
    return time_once(backend, operands->shape, [&] {
      attention(backend, plan, operands->q, operands->k, operands->v, operands->scale,
                operands->out);
    });
  };
  BenchJob job;
  job.sparse = [=] { return run(operands->plan); };
  job.dense = [=] { return run(operands->dense_plan); };
  job.error = [&backend, operands] { return sampled_error(backend, *operands); };
  const SymbolStats stats = operands->symbols.stats();
  job.macs_done = 2.0 * shape.head_dim * static_cast<double>(stats.live_pairs);
  job.ideal = 1 / stats.density();
  return job;
}

namespace {

// Largest difference of a few block logits from fp64 means, relative to the largest logit.
double logit_error(const AttentionOperands& operands, const BlockScores& scores) {
  const Tensor q = convert(operands.q_host, DType::kF32), k = convert(operands.k_host, DType::kF32);
  const BlockGrid& grid = operands.symbols.q_grid();
  const int dim = operands.shape.head_dim, width = operands.shape.inner_dim();
  const auto mean = [&](const Tensor& tensor, int head, int b, int d) {
    const Block block = grid.at(0, b);
    double sum = 0;
    for (int t = block.start; t < block.start + block.count; ++t) {
      sum += tensor.as<float>()[t * width + head * dim + d];
    }
    return sum / block.count;
  };
  Random random(9);
  RelativeError error;
  for (int sample = 0; sample < kSampledRows; ++sample) {
    const int head = random.below(operands.shape.num_heads);
    const int i = random.below(grid.num_blocks()), j = random.below(grid.num_blocks());
    double expected = 0;
    for (int d = 0; d < dim; ++d) expected += mean(q, head, i, d) * mean(k, head, j, d);
    error.add(scores.logits_row(0, head, i)[j], expected * operands.scale);
  }
  return error.value();
}

// The larger of the error of block scores and the share of pairs that the host selects otherwise.
double selection_error(Backend& backend, const AttentionOperands& operands,
                       const SparseSymbols& chosen) {
  BlockScores scores;
  backend.block_scores(operands.q, operands.k, chosen.q_grid(), chosen.kv_grid(), {}, scores, {});
  SparseSymbols expected(chosen.q_grid(), chosen.kv_grid(), chosen.num_heads());
  select_flashomni({}, /*ramp=*/1, scores, expected);
  std::int64_t different = 0;
  for (std::size_t w = 0; w < expected.skip_words().size(); ++w) {
    different += std::popcount(expected.skip_words()[w] ^ chosen.skip_words()[w]);
  }
  const double share =
      static_cast<double>(different) / static_cast<double>(expected.stats().block_pairs);
  return std::max(share, logit_error(operands, scores));
}

}  // namespace

BenchJob policy_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<AttentionOperands>(backend, shape, mask);
  const BlockGrid& grid = operands->symbols.q_grid();
  const auto words =
      std::make_shared<SymbolWords>(make_symbol_words(backend, grid, grid, shape.num_heads));
  BenchJob job;
  job.sparse = [&backend, operands, words] {
    return time_once(backend, operands->shape, [&] {
      backend.select_symbols(operands->q, operands->k, {}, /*ramp=*/1, *words, {}, {});
    });
  };
  job.dense = [&backend, operands] {
    return time_once(backend, operands->shape, [&] {
      attention(backend, operands->dense_plan, operands->q, operands->k, operands->v,
                operands->scale, operands->out);
    });
  };
  job.error = [&backend, operands, words] {
    const SparseSymbols chosen = download_symbols(backend, *words);
    return selection_error(backend, *operands, chosen);
  };
  job.macs_done = 2.0 * shape.seq_len * shape.inner_dim();  // the pooling
  job.ideal = 0;
  return job;
}

BenchJob plan_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<AttentionOperands>(backend, shape, mask);
  const BlockGrid& grid = operands->symbols.q_grid();
  const auto words =
      std::make_shared<SymbolWords>(make_symbol_words(backend, grid, grid, shape.num_heads));
  upload_symbols(backend, operands->symbols, *words);
  const auto attend = [&backend, operands](const AttentionPlan& plan) {
    attention(backend, plan, operands->q, operands->k, operands->v, operands->scale, operands->out);
  };
  BenchJob job;
  job.sparse = [&backend, operands, words] {
    return time_once(backend, operands->shape,
                     [&] { backend.build_attention_plan_from(*words, operands->plan, {}); });
  };
  job.dense = [=, &backend] {
    return time_once(backend, operands->shape, [&] { attend(operands->dense_plan); });
  };
  job.error = [=, &backend] {
    attend(operands->plan);
    return sampled_error(backend, *operands);
  };
  job.ideal = 0;
  return job;
}

}  // namespace flashomni::cli
