// attention_trace.h -- what the attention of a dense run did, kept small: which blocks hold the
// softmax, and how the outputs of different steps compare.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "flashomni/engine.h"

namespace flashomni::cli {

// The rows that are looked at: token 0, stride, 2 stride, ... of each query block.
std::vector<int> sampled_rows(const BlockGrid& q_grid, int q_block, int stride);

// The share of the exact softmax that each query block gives to each key block, the mean over its
// sampled rows: [heads, q_blocks, kv_blocks]. `q` and `k` are [1, seq_len, heads, head_dim], f32 on
// the host, and the scale is head_dim^-0.5. Rows sum to 1, or to 0 in blocks without tokens.
std::vector<float> block_masses(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                                const BlockGrid& kv_grid, int stride);

// The attention outputs of every step of a run, as the products of those of any two steps, summed
// over the sampled rows of a (head, query block). The distance of any weighted sum of outputs to
// any other output follows from them, so that no schedule needs to be run to know its forecasts.
class OutputProducts {
 public:
  OutputProducts() = default;
  OutputProducts(const BlockGrid& q_grid, int num_heads, int num_steps, int stride);

  // `o` [1, seq_len, heads, head_dim] of the next step, f32 on the host.
  void add(ConstTensorView o);
  double at(int head, int q_block, int step, int other) const;
  // | sum_i weights[i] o(steps[i]) - o(step) |^2 in L2.
  double squared_distance(int head, int q_block, std::span<const int> steps,
                          std::span<const double> weights, int step) const;
  void drop_rows() { rows_ = {}; }  // after the last step: what add() alone needs

 private:
  double& cell(int head, int q_block, int step, int other);

  int num_heads_ = 0, num_q_blocks_ = 0, num_steps_ = 0;
  std::vector<std::vector<int>> tokens_;  // sampled, of each query block
  std::vector<std::vector<float>> rows_;  // of each step: [q_block, row, heads, head_dim]
  std::vector<double> products_;          // [heads, q_blocks, steps, steps]
};

// The weight that the output of each of `updates` has in the forecast at `step`: finite differences
// of order EngineOptions::order where there are updates enough, as the engine forms them.
std::vector<double> forecast_weights(const EngineOptions& options, std::span<const int> updates,
                                     int step);

}  // namespace flashomni::cli
