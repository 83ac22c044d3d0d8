// gemm_bench -- the projections: GFLOP/s of live work, ratio to the register peak, and efficiency
// (speed-up over dense, divided by the ideal) at several fractions of cached (head, row block)s.
//   gemm_bench [--seq 2368] [--heads 24] [--head-dim 128] [--in 0 = heads * head_dim] [--block 64]
//              [--threads 1] [--dtype f32|bf16] [--set avx512] [--budget 1] [--interval 6]
#include "bench.h"

using namespace flashomni;
using namespace flashomni::bench;

namespace {

struct Shape {
  int seq_len, num_heads, head_dim, in_features, threads;
  DType dtype;
  double budget;
};

SparseSymbols random_symbols(const BlockGrid& grid, int num_heads, double cached) {
  SparseSymbols symbols(grid, grid, num_heads);
  std::mt19937 engine(7);
  std::vector<int> order(static_cast<std::size_t>(num_heads * grid.num_blocks()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), engine);
  for (std::size_t i = 0; i < static_cast<std::size_t>(cached * order.size()); ++i) {
    symbols.cache(0, order[i] % num_heads, order[i] / num_heads);
  }
  return symbols;
}

void print_row(const char* op, const std::string& set, double cached, double live_gflop,
               double dense_over_live, const Timing& timing, double& dense_at_peak) {
  if (cached == 0.0) dense_at_peak = timing.gflop_at_peak;
  const double speedup = dense_at_peak / timing.gflop_at_peak;
  std::printf("%-10s %-12s %6.2f %9.3f %9.1f %7.3f %6.2f %6.3f\n", op, set.c_str(), cached,
              timing.seconds * 1e3, live_gflop / timing.seconds, live_gflop / timing.gflop_at_peak,
              speedup, speedup / dense_over_live);
  std::fflush(stdout);
}

void bench_set(const std::string& set, const Shape& shape, const BlockGrid& grid, int interval) {
  BackendOptions options;
  options.cpu_kernels = set;
  options.num_threads = shape.threads;
  const auto backend = make_backend("cpu", options);
  const index_t rows = shape.seq_len, dim = shape.num_heads * shape.head_dim;
  const Tensor x = random_tensor(shape.dtype, {1, rows, shape.in_features}, 1);
  const Tensor o = random_tensor(shape.dtype, {1, rows, dim}, 2);
  const Tensor w_q = random_tensor(shape.dtype, {dim, shape.in_features}, 3);
  const Tensor w_o = random_tensor(shape.dtype, {shape.in_features, dim}, 4);
  const Tensor q = random_tensor(shape.dtype, {1, rows, dim}, 5);
  const Tensor y = random_tensor(shape.dtype, {1, rows, shape.in_features}, 6);
  const Tensor term = random_tensor(DType::kF32, {1, rows, shape.in_features}, 7);
  const Tensor valid = Tensor::host_zeros(DType::kU8, {1, grid.num_blocks()});
  const PackedWeight packed_linear = backend->pack_weight(w_q, shape.dtype, 0);
  const PackedWeight packed_q = backend->pack_weight(w_q, shape.dtype, shape.head_dim);
  const PackedWeight packed_o = backend->pack_weight(w_o, shape.dtype, 0);
  const double dense_gflop = 2e-9 * static_cast<double>(rows * dim) * shape.in_features;
  const auto time = [&](const auto& work) {
    return time_beside_peak(set, shape.dtype, shape.threads, shape.budget, work);
  };

  double dense_linear = 0;
  const ConstTensorView x_rows = x.view().reshape({rows, shape.in_features});
  for (const Activation activation : {Activation::kNone, Activation::kGeluTanh}) {
    const Timing timing = time([&] {
      backend->linear(x_rows, packed_linear, {}, activation, q.view().reshape({rows, dim}), {});
    });
    print_row(activation == Activation::kNone ? "linear" : "linear+gelu", set, 0, dense_gflop, 1,
              timing, dense_linear);
  }
  BiasCacheView cache;
  cache.order = 0;
  cache.terms[0] = term;
  cache.valid_order = valid;
  const float one = 1;
  double dense_q = 0, dense_o = 0, dense_dispatch = 0;
  for (const double cached : {0.0, 0.5, 0.75, 0.9}) {
    GemmPlan plan;
    build_gemm_plan(random_symbols(grid, shape.num_heads, cached), 0, shape.seq_len, nullptr, plan);
    const double live = static_cast<double>(plan.live_rows) / static_cast<double>(plan.total_rows);
    print_row("gemm_q", set, cached, dense_gflop * live, 1 / live,
              time([&] { backend->gemm_q(plan, x, packed_q, {}, {}, q, {}); }), dense_q);
    OutputProjection projection{&packed_o, {}, o, {}, y};
    const auto dispatch = [&] { backend->gemm_o_dispatch(plan, projection, {&one, 1}, cache, {}); };
    print_row("dispatch", set, cached, dense_gflop * live, 1 / live, time(dispatch),
              dense_dispatch);
    const double steps_live = (1 + (interval - 1) * live) / interval;
    Timing interval_timing = time([&] {
      backend->gemm_o_update(plan, projection, 1, cache, {});
      for (int step = 1; step < interval; ++step) dispatch();
    });
    interval_timing.seconds /= interval;
    interval_timing.gflop_at_peak /= interval;
    print_row("gemm_o", set, cached, dense_gflop * steps_live, 1 / steps_live, interval_timing,
              dense_o);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Shape shape{};
  shape.seq_len = int_option(argc, argv, "seq", 2368);
  shape.num_heads = int_option(argc, argv, "heads", 24);
  shape.head_dim = int_option(argc, argv, "head-dim", 128);
  shape.in_features = int_option(argc, argv, "in", 0);
  if (shape.in_features == 0) shape.in_features = shape.num_heads * shape.head_dim;
  shape.threads = int_option(argc, argv, "threads", 1);
  shape.dtype = option(argc, argv, "dtype", "f32") == "bf16" ? DType::kBF16 : DType::kF32;
  shape.budget = std::atof(option(argc, argv, "budget", "1").c_str());
  const std::vector<Segment> segments{{SegmentKind::kImage, shape.seq_len}};
  const BlockGrid grid(int_option(argc, argv, "block", 64), 1, segments);
  std::printf("%-10s %-12s %6s %9s %9s %7s %6s %6s\n", "op", "set", "cached", "ms", "GFLOP/s",
              "of peak", "x", "effic.");
  for (const std::string& set : kernel_sets(argc, argv)) {
    bench_set(set, shape, grid, int_option(argc, argv, "interval", 6));
  }
}
