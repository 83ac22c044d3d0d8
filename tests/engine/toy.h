// toy.h -- a two-layer attention stack that is small enough to compute by hand in fp64.
//
// Layer 0 has a text and an image stream with weights of their own, layer 1 one stream with an MLP
// half. The input of a layer depends on (step, branch, layer) alone, not on the layer before it, so
// that each output can be checked by itself.
#pragma once

#include <cmath>
#include <vector>

#include "flashomni/engine.h"

namespace flashomni::test {

inline constexpr int kTextTokens = 7, kImageTokens = 18, kSeqLen = kTextTokens + kImageTokens;
inline constexpr int kHeads = 2, kHeadDim = 8, kHidden = kHeads * kHeadDim, kMlpDim = 12;
inline constexpr int kLayers = 2, kBlock = 4;
inline constexpr int kTextBlocks = 2, kImageBlocks = 5, kBlocks = kTextBlocks + kImageBlocks;

// A number in [-1, 1) from a list of keys.
inline double noise(std::initializer_list<std::uint64_t> keys) {
  std::uint64_t state = 0x9E3779B97F4A7C15u;
  for (std::uint64_t key : keys) {
    state = (state ^ key) * 0xBF58476D1CE4E5B9u;
    state ^= state >> 29;
  }
  return static_cast<double>(state >> 11) * 0x1p-52 - 1.0;
}

using Matrix = std::vector<std::vector<double>>;  // [row][column]

inline Matrix noise_matrix(int rows, int columns, double scale, std::uint64_t seed) {
  Matrix matrix(rows, std::vector<double>(columns));
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      matrix[r][c] = static_cast<float>(scale * noise({seed, std::uint64_t(r), std::uint64_t(c)}));
    }
  }
  return matrix;
}

inline Tensor to_tensor(const Matrix& matrix) {
  Tensor tensor = Tensor::host(DType::kF32, {index_t(matrix.size()), index_t(matrix[0].size())});
  float* out = tensor.as<float>();
  for (const auto& row : matrix) {
    for (double value : row) *out++ = static_cast<float>(value);
  }
  return tensor;
}

// One stream's weights, in fp64 and packed for a backend.
struct ToyStream {
  int first_token, num_tokens, mlp_dim;
  Matrix q, k, v, out, q_bias, out_bias, q_norm, k_norm;  // the last four have one row

  ToyStream(int first_token, int num_tokens, int mlp_dim, std::uint64_t seed)
      : first_token(first_token),
        num_tokens(num_tokens),
        mlp_dim(mlp_dim),
        q(noise_matrix(kHidden, kHidden, .6, seed + 1)),
        k(noise_matrix(kHidden, kHidden, .6, seed + 2)),
        v(noise_matrix(kHidden, kHidden, .6, seed + 3)),
        out(noise_matrix(kHidden, kHidden + mlp_dim, .6, seed + 4)),
        q_bias(noise_matrix(1, kHidden, .5, seed + 5)),
        out_bias(noise_matrix(1, kHidden, .5, seed + 6)),
        q_norm(noise_matrix(1, kHeadDim, 1.5, seed + 7)),
        k_norm(noise_matrix(1, kHeadDim, 1.5, seed + 8)) {}
};

inline std::vector<ToyStream> toy_streams(int layer) {
  if (layer == 1) return {ToyStream(0, kSeqLen, kMlpDim, 300)};
  return {ToyStream(0, kTextTokens, 0, 100), ToyStream(kTextTokens, kImageTokens, 0, 200)};
}

inline Matrix toy_input(int step, int branch, int layer) {
  Matrix x = noise_matrix(kSeqLen, kHidden, 1, 1000 + 10 * branch + layer);
  const Matrix drift = noise_matrix(kSeqLen, kHidden, .3, 2000 + 100 * step + 10 * branch + layer);
  for (int t = 0; t < kSeqLen; ++t) {
    for (int c = 0; c < kHidden; ++c) x[t][c] = static_cast<float>(x[t][c] + drift[t][c]);
  }
  return x;
}

inline Matrix toy_mlp(int step, int branch) {
  return noise_matrix(kSeqLen, kMlpDim, 1, 5000 + 100 * step + branch);
}

inline Matrix rope_table(bool cosine) {
  Matrix table(kSeqLen, std::vector<double>(kHeadDim / 2));
  for (int t = 0; t < kSeqLen; ++t) {
    for (int i = 0; i < kHeadDim / 2; ++i) {
      const double angle = t * std::pow(10.0, -i);
      table[t][i] = static_cast<float>(cosine ? std::cos(angle) : std::sin(angle));
    }
  }
  return table;
}

inline SequenceShape toy_shape() {
  return {.segments = {{SegmentKind::kText, kTextTokens}, {SegmentKind::kImage, kImageTokens}},
          .num_heads = kHeads,
          .head_dim = kHeadDim,
          .hidden_dim = kHidden,
          .dtype = DType::kF32,
          .num_layers = kLayers};
}

// Runs the layers through an engine, as a model does.
class ToyModel {
 public:
  explicit ToyModel(Backend& backend)
      : cos_(to_tensor(rope_table(true))),
        sin_(to_tensor(rope_table(false))),
        gate_(Tensor::host(DType::kF32, {kHidden})) {
    for (index_t c = 0; c < kHidden; ++c) gate_.as<float>()[c] = c % 2 ? 2 : -0.5f;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const ToyStream& stream : toy_streams(layer)) add_stream(backend, layer, stream);
    }
  }

  // The layer's output [seq_len, hidden_dim]; forecast where the engine says so.
  Tensor run(Engine& engine, int layer, int step, int branch) {
    Tensor out = Tensor::host(DType::kF32, {kSeqLen, kHidden});
    for (index_t i = 0; i < out.num_elements(); ++i) out.as<float>()[i] = NAN;
    if (forecasts && engine.is_layer_forecast(layer)) {
      engine.forecast_module(layer, 0, out);
      return out;
    }
    const Tensor x = to_tensor(toy_input(step, branch, layer));
    const Tensor mlp = to_tensor(toy_mlp(step, branch));
    const Tensor sums = Tensor::host(DType::kF32, {kSeqLen, kHidden});
    for (index_t i = 0; i < sums.num_elements(); ++i) sums.as<float>()[i] = 1;
    attend(engine, layer, x, mlp, out, adds ? sums.view() : TensorView());
    const bool wanted = engine.wants_modules(layer);
    if (forecasts && wanted) engine.record_module(layer, 0, out);
    if (adds) recover_from(sums, wanted, out);
    return out;
  }

  // `residual` may be {}.
  void attend(Engine& engine, int layer, ConstTensorView x, ConstTensorView mlp, TensorView out,
              TensorView residual = {}) {
    AttentionStream streams[2];
    std::size_t count = 0;
    for (const Stream& stream : streams_) {
      if (stream.layer != layer) continue;
      const int end = stream.first_token + stream.num_tokens;
      streams[count++] = {.first_token = stream.first_token,
                          .num_tokens = stream.num_tokens,
                          .weights = &stream.weights,
                          .x = x.slice(0, stream.first_token, end),
                          .mlp = layer == 1 ? mlp : ConstTensorView(),
                          .out = out.slice(0, stream.first_token, end)};
      if (!residual) continue;
      streams[count - 1].residual = residual.slice(0, stream.first_token, end);
      streams[count - 1].gate = gate_;
    }
    engine.attend(layer, {streams, count}, {cos_, sin_});
  }

  bool adds = false;      // to a residual through a gate; run() returns what was added, ungated
  bool forecasts = true;  // false: a model that knows nothing of whole-layer caching

 private:
  struct Stream {
    int layer, first_token, num_tokens;
    StreamWeights weights;
  };

  // 1 + gate * value is in `sums`; out is the value if it was wanted, else still NaN.
  void recover_from(const Tensor& sums, bool wanted, const Tensor& out) const {
    for (index_t i = 0; i < out.num_elements(); ++i) {
      float& value = out.as<float>()[i];
      const float added = (sums.as<float>()[i] - 1) / gate_.as<float>()[i % kHidden];
      value = std::isnan(value) == wanted ? NAN : added;
    }
  }

  void add_stream(Backend& backend, int layer, const ToyStream& toy) {
    const auto keep = [&](const Matrix& matrix) -> ConstTensorView {
      return tensors_.emplace_back(to_tensor(matrix)).view();
    };
    const auto pack = [&](const Matrix& matrix, int column_group) {
      return packed_
          .emplace_back(std::make_unique<PackedWeight>(
              backend.pack_weight(to_tensor(matrix), DType::kF32, column_group)))
          .get();
    };
    const auto vector = [&](const Matrix& row) {
      return keep(row).reshape({static_cast<index_t>(row[0].size())});
    };
    streams_.push_back({layer,
                        toy.first_token,
                        toy.num_tokens,
                        {.q = pack(toy.q, kHeadDim),
                         .k = pack(toy.k, kHeadDim),
                         .v = pack(toy.v, kHeadDim),
                         .out = pack(toy.out, 0),
                         .q_bias = vector(toy.q_bias),
                         .k_bias = {},
                         .v_bias = {},
                         .out_bias = vector(toy.out_bias),
                         .q_norm = vector(toy.q_norm),
                         .k_norm = vector(toy.k_norm)}});
  }

  std::vector<Tensor> tensors_;
  std::vector<std::unique_ptr<PackedWeight>> packed_;
  std::vector<Stream> streams_;
  Tensor cos_, sin_, gate_;
};

}  // namespace flashomni::test
