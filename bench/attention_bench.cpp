// attention_bench -- block-sparse attention: GFLOP/s of live work, ratio to the register peak, and
// efficiency (speed-up over dense, divided by the ideal) at several sparsities.
//   attention_bench [--seq 2368] [--heads 6] [--head-dim 64] [--block 64] [--threads 1]
//                   [--dtype f32|bf16] [--set avx512] [--budget 1]
#include "bench.h"

using namespace flashomni;
using namespace flashomni::bench;

namespace {

// Every (head, q block) keeps the same number of kv blocks, chosen at random.
SparseSymbols random_symbols(const BlockGrid& grid, int num_heads, double sparsity) {
  SparseSymbols symbols(grid, grid, num_heads);
  std::mt19937 engine(7);
  const int num_blocks = grid.num_blocks();
  std::vector<int> order(static_cast<std::size_t>(num_blocks));
  const int skipped = std::min(num_blocks - 1, static_cast<int>(num_blocks * sparsity + 0.5));
  for (int head = 0; head < num_heads; ++head) {
    for (int q_block = 0; q_block < num_blocks; ++q_block) {
      for (int i = 0; i < num_blocks; ++i) order[static_cast<std::size_t>(i)] = i;
      std::shuffle(order.begin(), order.end(), engine);
      for (int i = 0; i < skipped; ++i) {
        symbols.skip(0, head, q_block, order[static_cast<std::size_t>(i)]);
      }
    }
  }
  return symbols;
}

}  // namespace

int main(int argc, char** argv) {
  const int seq_len = int_option(argc, argv, "seq", 2368);
  const int num_heads = int_option(argc, argv, "heads", 6);
  const int head_dim = int_option(argc, argv, "head-dim", 64);
  const int threads = int_option(argc, argv, "threads", 1);
  const double budget = std::atof(option(argc, argv, "budget", "1").c_str());
  const std::string dtype_wanted = option(argc, argv, "dtype", "f32");
  const DType dtype = dtype_wanted == "bf16" ? DType::kBF16 : DType::kF32;
  const std::vector<Segment> segments{{SegmentKind::kImage, seq_len}};
  const BlockGrid grid(int_option(argc, argv, "block", 64), 1, segments);

  const Layout layout{1, seq_len, num_heads, head_dim};
  const Tensor q = random_tensor(dtype, layout, 1), k = random_tensor(dtype, layout, 2),
               v = random_tensor(dtype, layout, 3), out = random_tensor(dtype, layout, 4);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  std::printf("%-12s %5s %6s %9s %9s %7s %6s %6s\n", "set", "dtype", "skip", "ms", "GFLOP/s",
              "of peak", "x", "effic.");
  for (const std::string& set : kernel_sets(argc, argv)) {
    BackendOptions options;
    options.cpu_kernels = set;
    options.num_threads = threads;
    const auto backend = make_backend("cpu", options);
    double dense_at_peak = 0;
    for (const double sparsity : {0.0, 0.5, 0.75, 0.9}) {
      AttentionPlan plan;
      build_attention_plan(random_symbols(grid, num_heads, sparsity), plan);
      const Timing timing = time_beside_peak(set, dtype, threads, budget, [&] {
        backend->attention(plan, q, k, v, scale, out, {}, {});
      });
      if (sparsity == 0.0) dense_at_peak = timing.gflop_at_peak;
      const double gflop = 4e-9 * static_cast<double>(plan.stats.live_pairs) * head_dim;
      const double speedup = dense_at_peak / timing.gflop_at_peak;
      std::printf("%-12s %5s %6.2f %9.3f %9.1f %7.3f %6.2f %6.3f\n", set.c_str(),
                  dtype_wanted.c_str(), sparsity, timing.seconds * 1e3, gflop / timing.seconds,
                  gflop / timing.gflop_at_peak, speedup, speedup * plan.stats.density());
      std::fflush(stdout);
    }
  }
}
