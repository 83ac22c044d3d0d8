// reference.h -- the oracle: every sparse operator once more, in fp64, from dense masks.
//
// Shares no code with the library: blocks are counted here from segments, masks are read as bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <vector>

#include <gtest/gtest.h>

#include "case.h"
#include "tolerance.h"

namespace flashomni::test {

// One element of a result; nullopt where the operator must not write.
struct Expected {
  double value = 0, tolerance = 0;
};
using ExpectedTensor = std::vector<std::optional<Expected>>;

inline std::vector<double> values_of(ConstTensorView contiguous) {
  std::vector<double> values(static_cast<std::size_t>(contiguous.layout.num_elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = load_float(contiguous, static_cast<index_t>(i));
  }
  return values;
}

// Every element as expected, and every other element as it was before the call.
inline void expect_matches(ConstTensorView actual, const ExpectedTensor& expected,
                           const char* name) {
  ASSERT_EQ(static_cast<std::size_t>(actual.layout.num_elements()), expected.size()) << name;
  int wrong = 0;
  double worst = 0;
  std::ostringstream first;
  for (index_t i = 0; i < actual.layout.num_elements(); ++i) {
    if (!expected[i]) {
      if (bits_of(actual, i) == canary_bits(actual.dtype)) continue;
      if (++wrong == 1) first << "element " << i << " must not be written";
      continue;
    }
    const double value = load_float(actual, i), wanted = expected[i]->value;
    const double error = value == wanted ? 0 : std::abs(value - wanted);
    if (error <= expected[i]->tolerance) continue;
    worst = std::max(worst, error / expected[i]->tolerance);
    if (++wrong == 1) {
      first << "element " << i << " is " << value << ", expected " << wanted << " +- "
            << expected[i]->tolerance;
    }
  }
  EXPECT_EQ(wrong, 0) << name << " " << actual.layout.to_string() << ": " << first.str()
                      << "; worst error is " << worst << " times the tolerance";
}

inline int blocks_in(int tokens, int block) { return (tokens + block - 1) / block; }

inline int num_blocks(const Axis& axis) {
  return blocks_in(axis.text, axis.block) + blocks_in(axis.tokens - axis.text, axis.block);
}

inline int block_of(const Axis& axis, int token) {
  const int first = axis.position == TextPosition::kLast ? axis.tokens - axis.text : axis.text;
  if (token < first) return token / axis.block;
  return blocks_in(first, axis.block) + (token - first) / axis.block;
}

inline bool is_live(const Sparsity& s, int item, int head, int token) {
  if (token >= s.q.length(item)) return false;
  return s.cache[(item * s.num_heads + head) * num_blocks(s.q) + block_of(s.q, token)] != 0;
}

inline bool is_used(const Sparsity& s, int item, int head, int token, int key) {
  if (key >= s.kv.length(item)) return false;
  const int row = (item * s.num_heads + head) * num_blocks(s.q) + block_of(s.q, token);
  return s.skip[row * num_blocks(s.kv) + block_of(s.kv, key)] != 0;
}

// softmax(scale * q K^T) V of one query, from pointers to the kept rows of K and V.
struct AttendedRow {
  SoftmaxRow row;
  std::vector<double> value, magnitude;  // [head_dim]; magnitude: with |v| for v
  double lse = -std::numeric_limits<double>::infinity();
};

inline AttendedRow attend(const double* query, const std::vector<const double*>& keys,
                          const std::vector<const double*>& values, int dim, double scale) {
  AttendedRow result{
      {dim, static_cast<int>(keys.size()), 0}, std::vector<double>(dim), std::vector<double>(dim)};
  if (keys.empty()) return result;
  std::vector<double> logits;
  for (const double* key : keys) {
    double logit = 0, magnitude = 0;
    for (int d = 0; d < dim; ++d) {
      logit += query[d] * key[d];
      magnitude += std::abs(query[d] * key[d]);
    }
    logits.push_back(logit * scale);
    result.row.max_logit_magnitude =
        std::max(result.row.max_logit_magnitude, magnitude * std::abs(scale));
  }
  const double row_max = *std::max_element(logits.begin(), logits.end());
  double row_sum = 0;
  for (const double logit : logits) row_sum += std::exp(logit - row_max);
  result.lse = row_max + std::log(row_sum);
  for (std::size_t n = 0; n < keys.size(); ++n) {
    const double weight = std::exp(logits[n] - result.lse);
    for (int d = 0; d < dim; ++d) {
      result.value[d] += weight * values[n][d];
      result.magnitude[d] += weight * std::abs(values[n][d]);
    }
  }
  return result;
}

struct ExpectedAttention {
  ExpectedTensor out, lse;
};

// q [batch, seq_len, heads, dim], k and v [batch, kv_len, kv_heads, dim], contiguous.
inline ExpectedAttention attention_oracle(const Sparsity& s, ConstTensorView q, ConstTensorView k,
                                          ConstTensorView v, double scale) {
  const auto qs = values_of(q), ks = values_of(k), vs = values_of(v);
  const int heads = s.num_heads, seq_len = s.q.tokens, kv_len = s.kv.tokens;
  const int dim = static_cast<int>(q.size(3)), kv_heads = static_cast<int>(k.size(2));
  ExpectedAttention expected{ExpectedTensor(qs.size()),
                             ExpectedTensor(static_cast<std::size_t>(s.batch) * heads * seq_len)};
  for (int row = 0; row < s.batch * heads * seq_len; ++row) {
    const int item = row / seq_len / heads, head = row / seq_len % heads, token = row % seq_len;
    if (!is_live(s, item, head, token)) continue;
    std::vector<const double*> keys, values;
    for (int key = 0; key < kv_len; ++key) {
      if (!is_used(s, item, head, token, key)) continue;
      const int kv_head = head / (heads / kv_heads);
      const auto offset =
          static_cast<std::size_t>((item * kv_len + key) * kv_heads + kv_head) * dim;
      keys.push_back(&ks[offset]);
      values.push_back(&vs[offset]);
    }
    const auto out = static_cast<std::size_t>((item * seq_len + token) * heads + head) * dim;
    const AttendedRow result = attend(&qs[out], keys, values, dim, scale);
    for (int d = 0; d < dim; ++d) {
      const double error =
          attention_error(q.dtype, result.row, result.value[d], result.magnitude[d]);
      expected.out[out + d] = Expected{result.value[d], keys.empty() ? 0 : error};
    }
    expected.lse[row] =
        Expected{result.lse, keys.empty() ? 0 : lse_error(q.dtype, result.row, result.lse)};
  }
  return expected;
}

}  // namespace flashomni::test
