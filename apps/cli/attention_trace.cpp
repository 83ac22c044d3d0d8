#include "attention_trace.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace flashomni::cli {
namespace {

// One head's keys with the tokens side by side, so that a row of logits is sums of rows of this.
std::vector<float> transposed_keys(ConstTensorView k, index_t head) {
  const index_t tokens = k.size(1), heads = k.size(2), dim = k.size(3);
  std::vector<float> keys(static_cast<std::size_t>(tokens * dim));
  for (index_t token = 0; token < tokens; ++token) {
    const float* row = k.as<float>() + (token * heads + head) * dim;
    for (index_t d = 0; d < dim; ++d) keys[d * tokens + token] = row[d];
  }
  return keys;
}

void add_scaled(float factor, const float* values, std::vector<float>& sums) {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += factor * values[i];
}

// Adds the softmax of one row, summed over each key block and divided by `rows`.
void add_row(std::span<const float> logits, const BlockGrid& kv_grid, std::size_t rows,
             std::span<float> masses) {
  const float highest = *std::ranges::max_element(logits);
  std::vector<double> sums(masses.size());
  for (std::size_t j = 0; j < masses.size(); ++j) {
    const Block block = kv_grid.at(0, static_cast<int>(j));
    for (const float logit : logits.subspan(block.start, block.count)) {
      sums[j] += std::exp(logit - highest);
    }
  }
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  for (std::size_t j = 0; j < masses.size(); ++j) {
    masses[j] += static_cast<float>(sums[j] / total / static_cast<double>(rows));
  }
}

}  // namespace

std::vector<int> sampled_rows(const BlockGrid& q_grid, int q_block, int stride) {
  const Block block = q_grid.at(0, q_block);
  std::vector<int> tokens;
  for (int offset = 0; offset < block.count; offset += stride) {
    tokens.push_back(block.start + offset);
  }
  return tokens;
}

std::vector<float> block_masses(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                                const BlockGrid& kv_grid, int stride) {
  const index_t tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const auto width = static_cast<std::size_t>(kv_grid.num_blocks());
  std::vector<float> masses(heads * q_grid.num_blocks() * width), logits;
  for (index_t head = 0; head < heads; ++head) {
    const std::vector<float> keys = transposed_keys(k, head);
    for (int i = 0; i < q_grid.num_blocks(); ++i) {
      const std::vector<int> rows = sampled_rows(q_grid, i, stride);
      const std::span into(masses.data() + (head * q_grid.num_blocks() + i) * width, width);
      for (const int row : rows) {
        const float* query = q.as<float>() + (row * heads + head) * dim;
        logits.assign(static_cast<std::size_t>(tokens), 0);
        for (index_t d = 0; d < dim; ++d) add_scaled(scale * query[d], &keys[d * tokens], logits);
        add_row(logits, kv_grid, rows.size(), into);
      }
    }
  }
  return masses;
}

OutputProducts::OutputProducts(const BlockGrid& q_grid, int num_heads, int num_steps, int stride)
    : num_heads_(num_heads), num_q_blocks_(q_grid.num_blocks()), num_steps_(num_steps) {
  for (int i = 0; i < num_q_blocks_; ++i) tokens_.push_back(sampled_rows(q_grid, i, stride));
  products_.resize(static_cast<std::size_t>(num_heads) * num_q_blocks_ * num_steps * num_steps);
}

double& OutputProducts::cell(int head, int q_block, int step, int other) {
  const std::size_t block = static_cast<std::size_t>(head) * num_q_blocks_ + q_block;
  return products_[(block * num_steps_ + step) * num_steps_ + other];
}

double OutputProducts::at(int head, int q_block, int step, int other) const {
  return const_cast<OutputProducts*>(this)->cell(head, q_block, step, other);
}

void OutputProducts::add(ConstTensorView o) {
  const index_t width = o.size(2) * o.size(3), dim = o.size(3);
  const int step = static_cast<int>(rows_.size());
  std::vector<float>& now = rows_.emplace_back();
  for (const std::vector<int>& tokens : tokens_) {
    for (const int token : tokens) {
      const float* row = o.as<float>() + token * width;
      now.insert(now.end(), row, row + width);
    }
  }
  for (int other = 0; other <= step; ++other) {
    const float *a = now.data(), *b = rows_[other].data();
    for (int i = 0; i < num_q_blocks_; ++i) {
      for (index_t n = 0; n < static_cast<index_t>(tokens_[i].size()) * num_heads_; ++n) {
        const double product = std::inner_product(a, a + dim, b, 0.0);
        const int head = static_cast<int>(n % num_heads_);
        cell(head, i, step, other) += product;
        if (other < step) cell(head, i, other, step) += product;
        a += dim;
        b += dim;
      }
    }
  }
}

double OutputProducts::squared_distance(int head, int q_block, std::span<const int> steps,
                                        std::span<const double> weights, int step) const {
  double sum = at(head, q_block, step, step);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    sum -= 2 * weights[i] * at(head, q_block, steps[i], step);
    for (std::size_t j = 0; j < steps.size(); ++j) {
      sum += weights[i] * weights[j] * at(head, q_block, steps[i], steps[j]);
    }
  }
  return std::max(sum, 0.0);  // rounding may leave less than nothing
}

std::vector<double> forecast_weights(const EngineOptions& options, std::span<const int> updates,
                                     int step) {
  // The engine's terms as weights of the outputs they are made of.
  std::vector<std::vector<double>> terms;
  for (std::size_t n = 0; n < updates.size(); ++n) {
    const std::vector<std::vector<double>> old = terms;
    terms.resize(std::min(n, static_cast<std::size_t>(options.order)) + 1);
    for (std::vector<double>& term : terms) term.assign(updates.size(), 0);
    terms[0][n] = 1;
    for (std::size_t o = 0; o + 1 < terms.size(); ++o) {
      for (std::size_t i = 0; i < updates.size(); ++i) {
        terms[o + 1][i] = (terms[o][i] - old[o][i]) / (updates[n] - updates[n - 1]);
      }
    }
  }
  const int order = static_cast<int>(terms.size()) - 1;
  const std::vector<float> coefficients =
      forecast_coefficients(options.forecast, order, step - updates.back(), options.interval);
  std::vector<double> weights(updates.size());
  for (std::size_t o = 0; o < terms.size(); ++o) {
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] += coefficients[o] * terms[o][i];
  }
  return weights;
}

}  // namespace flashomni::cli
