// bench_step.cpp -- the job `step`: one attention layer through the engine, with given symbols,
// added to a residual as models do.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <memory>
#include <utility>

#include "bench_jobs.h"
#include "flashomni/engine.h"

namespace flashomni::cli {
namespace {

// Copies masks made beforehand.
class GivenSymbols : public SparsityPolicy {
 public:
  explicit GivenSymbols(SparseSymbols symbols) : symbols_(std::move(symbols)) {}
  std::string_view name() const override { return "given"; }
  void select(const PolicyContext&, SparseSymbols& symbols) const override { symbols = symbols_; }

 private:
  SparseSymbols symbols_;
};

class Layer {
 public:
  Layer(Backend& backend, const BenchShape& shape, const MaskRequest& mask)
      : backend_(backend),
        shape_(shape),
        symbols_(
            make_symbols(shape.seq_len, shape.text_tokens, shape.block, shape.num_heads, mask)) {
    const index_t dim = shape.inner_dim();
    for (int i = 0; i < 4; ++i) {
      // Of the size that keeps the outputs near 1.
      Tensor weight = random_tensor({dim, dim}, DType::kF32, 10 + static_cast<unsigned>(i));
      const float scale = std::sqrt(3.0f / static_cast<float>(dim));
      std::for_each_n(weight.as<float>(), weight.num_elements(), [&](float& w) { w *= scale; });
      packed_[i] = backend.pack_weight(weight, shape.dtype, i < 3 ? shape.head_dim : 0);
    }
    weights_.q = &packed_[0];
    weights_.k = &packed_[1];
    weights_.v = &packed_[2];
    weights_.out = &packed_[3];
    x_ = upload(backend, random_tensor({shape.seq_len, dim}, shape.dtype, 1));
    out_ = backend.allocate(shape.dtype, {shape.seq_len, dim});
    residual_ = upload(backend, Tensor::host_zeros(DType::kF32, {shape.seq_len, dim}));
    gate_ = upload(backend, random_tensor({dim}, DType::kF32, 2));
    engine_ = make_engine(std::make_unique<GivenSymbols>(symbols_));
    dense_engine_ = make_engine(make_policy("dense", {}));
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // Seconds of a step, averaged over an update and interval - 1 dispatches.
  double run_interval() {
    begin(*engine_);
    double seconds = 0;
    for (int step = 0; step < shape_.interval; ++step) seconds += run_step(*engine_, step);
    return seconds / shape_.interval;
  }
  double run_dense() {
    begin(*dense_engine_);
    return run_step(*dense_engine_, 0);
  }
  // What an update and interval - 1 dispatches add to a residual of zeros, each run once: timing
  // runs them again and again.
  Tensor add_interval() {
    begin(*engine_);
    for (int step = 0; step < shape_.interval; ++step) {
      engine_->begin_step(step, /*branch=*/0);
      attend(*engine_);
    }
    return download_f32(backend_, residual_);
  }

  double dense_macs() const { return macs(1, 1); }
  double interval_macs() const {
    const SymbolStats stats = symbols_.stats();
    const double dispatch = macs(stats.live_fraction(), stats.density());
    return (dense_macs() + (shape_.interval - 1) * dispatch) / shape_.interval;
  }

 private:
  // Q and O of the live rows, K and V of all, attention of the live pairs.
  double macs(double live, double density) const {
    const double rows = shape_.seq_len, dim = shape_.inner_dim();
    return 2 * rows * dim * dim * (1 + live) + 2 * rows * rows * dim * density;
  }

  std::unique_ptr<Engine> make_engine(std::unique_ptr<SparsityPolicy> policy) {
    EngineOptions options;
    options.warmup = 1;  // step 0 is the update
    options.interval = shape_.interval;
    options.order = 0;
    options.block_q = options.block_kv = shape_.block;
    return std::make_unique<Engine>(backend_, options, std::move(policy));
  }

  void begin(Engine& engine) {
    const auto position = shape_.text_tokens > 0 ? TextPosition::kFirst : TextPosition::kNone;
    // One step more than is run: the last one would be full.
    engine.begin({.segments = make_segments(shape_.seq_len, shape_.text_tokens, position),
                  .num_heads = shape_.num_heads,
                  .head_dim = shape_.head_dim,
                  .hidden_dim = shape_.inner_dim(),
                  .dtype = shape_.dtype,
                  .num_layers = 1},
                 shape_.interval + 1, /*num_branches=*/1);
  }

  double run_step(Engine& engine, int step) {
    engine.begin_step(step, /*branch=*/0);
    return time_once(backend_, shape_, [&] { attend(engine); });
  }
  void attend(Engine& engine) {
    const AttentionStream stream{0, shape_.seq_len, &weights_, x_, {}, out_, residual_, gate_};
    engine.attend(/*layer=*/0, {&stream, 1}, {});
  }

  Backend& backend_;
  BenchShape shape_;
  SparseSymbols symbols_;
  PackedWeight packed_[4];
  StreamWeights weights_;
  Tensor x_, out_, residual_, gate_;
  std::unique_ptr<Engine> engine_, dense_engine_;
};

// A small layer of the same kind on this backend and on the reference backend.
double small_layer_error(Backend& backend, BenchShape shape, const MaskRequest& mask) {
  shape.seq_len = std::min(shape.seq_len, 4 * shape.block + 8);
  shape.text_tokens = std::min(shape.text_tokens, shape.block);
  shape.num_heads = std::min(shape.num_heads, 2);
  const auto reference = flashomni::make_backend("reference");
  Layer layer(backend, shape, mask), expected(*reference, shape, mask);
  const Tensor a = layer.add_interval(), b = expected.add_interval();
  RelativeError error;
  for (index_t i = 0; i < a.num_elements(); ++i) error.add(a.as<float>()[i], b.as<float>()[i]);
  return error.value();
}

}  // namespace

double time_once(Backend& backend, const BenchShape& shape, const std::function<void()>& work) {
  const auto run = [&](int count) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu_start = std::clock();
    for (int i = 0; i < count; ++i) work();
    backend.synchronize({});
    const double cpu_seconds = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return (shape.cpu_time ? cpu_seconds : seconds.count()) / count;
  };
  const double once = run(1);
  if (backend.device().type == DeviceType::kCpu) return once;
  constexpr double kLongEnough = 2e-3;  // against which starting and waiting count for little
  return once < kLongEnough ? run(1 + static_cast<int>(kLongEnough / once)) : once;
}

BenchJob step_job(Backend& backend, const BenchShape& shape, const MaskRequest& mask) {
  const auto layer = std::make_shared<Layer>(backend, shape, mask);
  BenchJob job;
  job.sparse = [layer] { return layer->run_interval(); };
  job.dense = [layer] { return layer->run_dense(); };
  job.error = [&backend, shape, mask] { return small_layer_error(backend, shape, mask); };
  job.macs_done = layer->interval_macs();
  job.ideal = layer->dense_macs() / layer->interval_macs();
  return job;
}

}  // namespace flashomni::cli
