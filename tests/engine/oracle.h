// oracle.h -- what the toy of toy.h must give, computed in fp64 from the definitions.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <span>

#include "toy.h"

namespace flashomni::test {

// Masks of one layer, branch and update step; true = compute, use.
struct Masks {
  bool cache[kHeads][kBlocks];
  bool skip[kHeads][kBlocks][kBlocks];
};
using MaskScript = std::function<Masks(int layer, int branch, int step)>;

inline int block_of(int token) {
  return token < kTextTokens ? token / kBlock : kTextBlocks + (token - kTextTokens) / kBlock;
}

// A different random draw for each layer, branch and step, but image blocks of even index keep
// their cached heads for ever: there differences grow to full order.
inline Masks random_masks(int layer, int branch, int step) {
  Masks masks;
  const auto draw = [&](std::uint64_t a, std::uint64_t b, std::uint64_t c, bool keep) {
    return noise({std::uint64_t(layer), std::uint64_t(branch), keep ? 999u : std::uint64_t(step), a,
                  b, c}) < .2;
  };
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < kBlocks; ++i) {
      masks.cache[h][i] = i < kTextBlocks || draw(h, i, 0, i % 2 == 0);
      for (int j = 0; j < kBlocks; ++j) {
        masks.skip[h][i][j] = i < kTextBlocks || j == i || draw(h, i, j + 1, false);
      }
    }
  }
  return masks;
}

class ScriptedPolicy : public SparsityPolicy {
 public:
  explicit ScriptedPolicy(MaskScript script, PolicyTraits traits = {},
                          MaskScript update_script = nullptr)
      : script_(std::move(script)), traits_(traits), update_script_(std::move(update_script)) {}
  std::string_view name() const override { return "scripted"; }
  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    apply(script_(context.layer, context.branch, context.step), symbols);
  }
  void select_update(const PolicyContext& context, SparseSymbols& symbols) const override {
    apply(update_script_(context.layer, context.branch, context.step), symbols);
  }
  PolicyTraits traits() const override { return traits_; }

 private:
  static void apply(const Masks& masks, SparseSymbols& symbols) {
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kBlocks; ++i) {
        if (!masks.cache[h][i]) symbols.cache(0, h, i);
        for (int j = 0; j < kBlocks; ++j) {
          if (!masks.skip[h][i][j]) symbols.skip(0, h, i, j);
        }
      }
    }
  }

  MaskScript script_;
  PolicyTraits traits_;
  MaskScript update_script_;
};

class Oracle {
 public:
  Oracle(MaskScript script, int order, int interval, ForecastKind kind)
      : script_(std::move(script)), order_(order), interval_(interval), kind_(kind) {}

  Matrix dense(int layer, int step, int branch) const {
    return output(layer, step, branch, project_heads(layer, step, branch, nullptr));
  }

  struct Qkv {
    Matrix q, k, v;  // [seq_len][head_dim]
  };

  // After norm and rotary embedding.
  Qkv qkv(int layer, int step, int branch, int h) const {
    const auto streams = toy_streams(layer);
    const Matrix x = toy_input(step, branch, layer);
    Qkv head{Matrix(kSeqLen), Matrix(kSeqLen), Matrix(kSeqLen)};
    for (int t = 0; t < kSeqLen; ++t) {
      const ToyStream& stream = stream_of(streams, t);
      const auto project = [&](const Matrix& weight, const Matrix* bias) {
        std::vector<double> y(kHeadDim);
        for (int d = 0; d < kHeadDim; ++d) {
          const int feature = h * kHeadDim + d;
          y[d] = bias ? (*bias)[0][feature] : 0;
          for (int c = 0; c < kHidden; ++c) y[d] += weight[feature][c] * x[t][c];
        }
        return y;
      };
      head.q[t] = norm_rope(project(stream.q, &stream.q_bias), stream.q_norm[0], t);
      head.k[t] = norm_rope(project(stream.k, nullptr), stream.k_norm[0], t);
      head.v[t] = project(stream.v, nullptr);
    }
    return head;
  }

  // The layer's output as whole-layer caching extrapolates it.
  Matrix forecast(int layer, int step, int branch, std::span<const int> updates) const {
    std::vector<Matrix> history;  // newest first
    for (std::size_t n = 0; n < updates.size() && n < 3; ++n) {
      history.push_back(dense(layer, updates[updates.size() - 1 - n], branch));
    }
    const int usable = std::min<int>(order_, static_cast<int>(updates.size()) - 1);
    Matrix out(kSeqLen);
    for (int t = 0; t < kSeqLen; ++t) {
      out[t] = extrapolate([&](int age, int c) { return history[age][t][c]; }, usable,
                           step - updates.back());
    }
    return out;
  }

  // `updates`: the steps at which symbols were made so far, ascending.
  Matrix dispatch(int layer, int step, int branch, std::span<const int> updates) const {
    const Masks masks = script_(layer, branch, updates.back());
    std::vector<std::array<Matrix, kHeads>> history;  // newest first
    for (std::size_t n = 0; n < updates.size() && n < 3; ++n) {
      history.push_back(project_heads(layer, updates[updates.size() - 1 - n], branch, nullptr));
    }
    std::array<Matrix, kHeads> parts = project_heads(layer, step, branch, &masks);
    for (int t = 0; t < kSeqLen; ++t) {
      const int usable = usable_order(layer, branch, block_of(t), updates);
      for (int h = 0; h < kHeads; ++h) {
        if (masks.cache[h][block_of(t)]) continue;
        parts[h][t] = extrapolate([&](int age, int c) { return history[age][h][t][c]; }, usable,
                                  step - updates.back());
      }
    }
    return output(layer, step, branch, parts);
  }

 private:
  // How many updates in a row left this block's cached heads as they are, up to the order kept.
  int usable_order(int layer, int branch, int block, std::span<const int> updates) const {
    int usable = 0;
    for (std::size_t n = updates.size() - 1; n > 0 && usable < order_; --n, ++usable) {
      const Masks a = script_(layer, branch, updates[n]);
      const Masks b = script_(layer, branch, updates[n - 1]);
      for (int h = 0; h < kHeads; ++h) {
        if (a.cache[h][block] != b.cache[h][block]) return usable;
      }
    }
    return usable;
  }

  // `f(age, c)`: column c of a row at the update `age` updates ago.
  std::vector<double> extrapolate(const std::function<double(int, int)>& f, int usable,
                                  int k) const {
    const double n = interval_;
    const double second = kind_ == ForecastKind::kTaylor ? k * k / 2.0 : k * (k + n) / 2.0;
    std::vector<double> row(kHidden);
    for (int c = 0; c < kHidden; ++c) {
      row[c] = f(0, c);
      if (usable >= 1) row[c] += k * (f(0, c) - f(1, c)) / n;
      if (usable >= 2) row[c] += second * (f(0, c) - 2 * f(1, c) + f(2, c)) / (n * n);
    }
    return row;
  }

  static const ToyStream& stream_of(const std::vector<ToyStream>& streams, int token) {
    return token < streams[0].first_token + streams[0].num_tokens ? streams[0] : streams[1];
  }

  static std::vector<double> norm_rope(std::vector<double> x, const std::vector<double>& weight,
                                       int token) {
    double mean_square = 0;
    for (double value : x) mean_square += value * value / kHeadDim;
    for (int d = 0; d < kHeadDim; ++d) x[d] *= weight[d] / std::sqrt(mean_square + 1e-6);
    static const Matrix cos = rope_table(true), sin = rope_table(false);
    std::vector<double> rotated(kHeadDim);
    for (int i = 0; i < kHeadDim / 2; ++i) {
      const double c = cos[token][i], s = sin[token][i];
      rotated[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
      rotated[2 * i + 1] = x[2 * i + 1] * c + x[2 * i] * s;
    }
    return rotated;
  }

  // Per head the rows o_h W_h, [seq_len][hidden_dim]; with masks over the used blocks only.
  std::array<Matrix, kHeads> project_heads(int layer, int step, int branch,
                                           const Masks* masks) const {
    const auto streams = toy_streams(layer);
    std::array<Matrix, kHeads> parts;
    for (int h = 0; h < kHeads; ++h) {
      const Qkv head = qkv(layer, step, branch, h);
      parts[h].resize(kSeqLen);
      for (int t = 0; t < kSeqLen; ++t) {
        const bool* used = masks ? masks->skip[h][block_of(t)] : nullptr;
        const auto o = attend(head.q[t], head.k, head.v, used);
        parts[h][t] = project_out(stream_of(streams, t), h, o);
      }
    }
    return parts;
  }

  static std::vector<double> attend(const std::vector<double>& q, const Matrix& k, const Matrix& v,
                                    const bool* used) {
    std::vector<double> sum(kHeadDim);
    double total = 0;
    for (int s = 0; s < kSeqLen; ++s) {
      if (used && !used[block_of(s)]) continue;
      double logit = 0;
      for (int d = 0; d < kHeadDim; ++d) logit += q[d] * k[s][d];
      const double weight = std::exp(logit / std::sqrt(double(kHeadDim)));
      total += weight;
      for (int d = 0; d < kHeadDim; ++d) sum[d] += weight * v[s][d];
    }
    for (double& value : sum) value /= total;
    return sum;
  }

  static std::vector<double> project_out(const ToyStream& stream, int h,
                                         const std::vector<double>& o) {
    std::vector<double> y(kHidden);
    for (int c = 0; c < kHidden; ++c) {
      for (int d = 0; d < kHeadDim; ++d) y[c] += stream.out[c][h * kHeadDim + d] * o[d];
    }
    return y;
  }

  // Bias, heads and MLP half together.
  Matrix output(int layer, int step, int branch, const std::array<Matrix, kHeads>& parts) const {
    const auto streams = toy_streams(layer);
    const Matrix mlp = toy_mlp(step, branch);
    Matrix out(kSeqLen, std::vector<double>(kHidden));
    for (int t = 0; t < kSeqLen; ++t) {
      const ToyStream& stream = stream_of(streams, t);
      for (int c = 0; c < kHidden; ++c) {
        out[t][c] = stream.out_bias[0][c];
        for (int h = 0; h < kHeads; ++h) out[t][c] += parts[h][t][c];
        for (int m = 0; m < stream.mlp_dim; ++m) {
          out[t][c] += stream.out[c][kHidden + m] * mlp[t][m];
        }
      }
    }
    return out;
  }

  MaskScript script_;
  int order_, interval_;
  ForecastKind kind_;
};

}  // namespace flashomni::test
