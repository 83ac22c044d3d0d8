// bench_gemm.cpp -- the jobs `gemm-q`, `gemm-o`, `gemm-plan` and `linear`. in_features =
// out_features = heads * head_dim.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "bench_jobs.h"
#include "flashomni/gemm.h"

namespace flashomni::cli {
namespace {

constexpr int kSampledRows = 8;

struct GemmOperands {
  GemmOperands(Backend& backend, const BenchShape& shape, MaskRequest mask, int column_group)
      : shape(shape) {
    mask.kind = MaskKind::kCache;  // the projections know no other
    symbols = make_symbols(shape.seq_len, shape.text_tokens, shape.block, shape.num_heads, mask);
    const index_t dim = shape.inner_dim();
    x_host = random_tensor({1, shape.seq_len, dim}, shape.dtype, 1);
    w_host = random_tensor({dim, dim}, shape.dtype, 2);
    x = upload(backend, x_host);
    weight = backend.pack_weight(w_host, shape.dtype, column_group);
    out = backend.allocate(shape.dtype, {1, shape.seq_len, dim});
    backend.build_gemm_plan(symbols, 0, shape.seq_len, nullptr, plan, {});
    SparseSymbols all = symbols;
    all.set_all_live();
    backend.build_gemm_plan(all, 0, shape.seq_len, nullptr, dense_plan, {});
  }

  double live_fraction() const {
    return static_cast<double>(plan.live_rows) / static_cast<double>(plan.total_rows);
  }
  double dense_macs() const {
    return static_cast<double>(shape.seq_len) * shape.inner_dim() * shape.inner_dim();
  }

  BenchShape shape;
  SparseSymbols symbols;
  Tensor x_host, w_host, x, out;
  PackedWeight weight;
  GemmPlan plan, dense_plan;
};

// Sampled rows of `out` against x W^T in fp64; only live heads' columns if `live_only`.
double sampled_error(Backend& backend, const GemmOperands& operands, bool live_only) {
  const Tensor x = convert(operands.x_host, DType::kF32), w = convert(operands.w_host, DType::kF32),
               out = download_f32(backend, operands.out);
  const BlockGrid& grid = operands.symbols.q_grid();
  const int dim = operands.shape.inner_dim();
  Random random(9);
  RelativeError error;
  for (int sample = 0; sample < kSampledRows; ++sample) {
    const int q_block = random.below(grid.num_blocks());
    const int token = grid.at(0, q_block).start + random.below(grid.at(0, q_block).count);
    for (int column = 0; column < dim; ++column) {
      const int head = column / operands.shape.head_dim;
      if (live_only && !operands.symbols.is_live(0, head, q_block)) continue;
      const float *row = x.as<float>() + static_cast<index_t>(token) * dim,
                  *weights = w.as<float>() + static_cast<index_t>(column) * dim;
      double expected = 0;
      for (int i = 0; i < dim; ++i) expected += static_cast<double>(row[i]) * weights[i];
      error.add(out.as<float>()[static_cast<index_t>(token) * dim + column], expected);
    }
  }
  return error.value();
}

}  // namespace

BenchJob gemm_q_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<GemmOperands>(backend, shape, mask, shape.head_dim);
  const auto run = [&backend, operands](const GemmPlan& plan) {
    return time_once(backend, operands->shape, [&] {
      gemm_q(backend, plan, operands->x, operands->weight, {}, {}, operands->out);
    });
  };
  BenchJob job;
  job.sparse = [=] { return run(operands->plan); };
  job.dense = [=] { return run(operands->dense_plan); };
  job.error = [&backend, operands] { return sampled_error(backend, *operands, true); };
  job.macs_done = operands->dense_macs() * operands->live_fraction();
  job.ideal = 1 / operands->live_fraction();
  return job;
}

BenchJob gemm_plan_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<GemmOperands>(backend, shape, mask, shape.head_dim);
  const auto o_weight =
      std::make_shared<PackedWeight>(backend.pack_weight(operands->w_host, shape.dtype, 0));
  const BlockGrid& grid = operands->symbols.q_grid();
  const auto words =
      std::make_shared<SymbolWords>(make_symbol_words(backend, grid, grid, shape.num_heads));
  upload_symbols(backend, operands->symbols, *words);
  const auto project = [&backend, operands](const GemmPlan& plan) {
    gemm_q(backend, plan, operands->x, operands->weight, {}, {}, operands->out);
  };
  BenchJob job;
  job.sparse = [&backend, operands, words] {
    return time_once(backend, operands->shape, [&] {
      backend.build_gemm_plan_from(*words, 0, operands->shape.seq_len, words.get(), operands->plan,
                                   {});
    });
  };
  job.dense = [=, &backend] {
    return time_once(backend, operands->shape, [&] { project(operands->dense_plan); });
  };
  // Both projections go by the plan, so that the timed builds make the lists of both.
  job.error = [=, &backend] {
    project(operands->plan);
    const double error = sampled_error(backend, *operands, true);
    gemm_o_update(backend, operands->plan, {o_weight.get(), {}, operands->x, {}, operands->out}, 1,
                  {});
    return std::max(error, sampled_error(backend, *operands, false));
  };
  job.ideal = 0;
  return job;
}

BenchJob linear_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<GemmOperands>(backend, shape, mask, /*column_group=*/0);
  const index_t rows = shape.seq_len, dim = shape.inner_dim();
  BenchJob job;
  job.sparse = [&backend, operands, rows, dim] {
    return time_once(backend, operands->shape, [&] {
      backend.linear(operands->x.view().reshape({rows, dim}), operands->weight, {},
                     Activation::kNone, operands->out.view().reshape({rows, dim}), {});
    });
  };
  job.dense = job.sparse;
  job.error = [&backend, operands] { return sampled_error(backend, *operands, false); };
  job.macs_done = operands->dense_macs();
  return job;
}

BenchJob gemm_o_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto operands = std::make_shared<GemmOperands>(backend, shape, mask, /*column_group=*/0);
  const auto bias_cache = std::make_shared<Tensor>(backend.allocate(
      backend.bias_cache_dtype(operands->weight.dtype), {1, shape.seq_len, shape.inner_dim()}));
  const auto orders =
      std::make_shared<Tensor>(backend.allocate(DType::kU8, {1, operands->plan.num_q_blocks}));
  const auto projection = [operands] {
    return OutputProjection{&operands->weight, {}, operands->x, {}, operands->out};
  };
  BenchJob job;
  job.sparse = [&backend, operands, bias_cache, orders, projection, shape] {
    BiasCacheView cache;
    cache.order = 0;
    cache.terms[0] = *bias_cache;
    cache.valid_order = *orders;
    constexpr float kOne[] = {1.0f};
    const double seconds = time_once(backend, operands->shape, [&] {
      gemm_o_update(backend, operands->plan, projection(), 1, cache);
      for (int step = 1; step < shape.interval; ++step) {
        gemm_o_dispatch(backend, operands->plan, projection(), kOne, cache);
      }
    });
    return seconds / shape.interval;
  };
  job.dense = [&backend, operands, projection] {
    return time_once(backend, operands->shape,
                     [&] { gemm_o_update(backend, operands->dense_plan, projection(), 1, {}); });
  };
  // With o unchanged since the update, a dispatch gives the dense projection.
  job.error = [&backend, operands] { return sampled_error(backend, *operands, false); };
  const double work = (1 + (shape.interval - 1) * operands->live_fraction()) / shape.interval;
  job.macs_done = operands->dense_macs() * work;
  job.ideal = 1 / work;
  return job;
}

}  // namespace flashomni::cli
