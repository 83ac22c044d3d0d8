// tolerance.h -- how far a correct result may be from the exact one. Derivation: docs/numerics.md.
//
// The only tolerances of the operator tests. Each is a worst-case bound on rounding, from the unit
// roundoff of the dtypes, the number of terms, and the sum of the terms' absolute values.
#pragma once

#include <cmath>

#include "flashomni/tensor.h"

namespace flashomni::test {

// Largest relative error of rounding to nearest.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return std::ldexp(1.0, -8);
    case DType::kF16: return std::ldexp(1.0, -11);
    default: return std::ldexp(1.0, -24);
  }
}

inline const double kRoundoff = unit_roundoff(DType::kF32);

// Rounding `value` once when it is stored. Below the normal range the error is absolute.
inline double store_error(DType dtype, double value) {
  const double smallest = dtype == DType::kF16 ? std::ldexp(1.0, -25) : std::ldexp(1.0, -134);
  return unit_roundoff(dtype) * std::abs(value) + smallest;
}

// A sum of `length` products in fp32, in any order; `magnitude` is the sum of their absolute
// values.
inline double sum_error(double length, double magnitude) {
  return (length + 1) * kRoundoff * magnitude;
}

// A handful of fp32 operations on a value: scale, bias, an activation, a norm's last step.
inline double few_operations_error(double magnitude) { return 8 * kRoundoff * magnitude; }

// What a softmax row is made of, in exact arithmetic.
struct SoftmaxRow {
  int head_dim = 0, kept = 0;      // length of a logit's sum; number of kept keys
  double max_logit_magnitude = 0;  // max over kept keys of |scale| sum |q_d k_d|
};

// Relative error of one softmax weight: the logits' sums (of the key and of the row's sum), exp,
// the row sum, and rounding the weight to the operand dtype before it meets V.
inline double softmax_weight_error(DType dtype, const SoftmaxRow& row) {
  const double logit_error = sum_error(row.head_dim + 2, row.max_logit_magnitude);
  return 2 * logit_error + (row.kept + 8) * kRoundoff + 2 * unit_roundoff(dtype);
}

// One element of the output; `magnitude` = sum of weight times |v|.
inline double attention_error(DType dtype, const SoftmaxRow& row, double value, double magnitude) {
  return (softmax_weight_error(dtype, row) + row.kept * kRoundoff) * magnitude +
         store_error(dtype, value);
}

inline double lse_error(DType dtype, const SoftmaxRow& row, double value) {
  return softmax_weight_error(dtype, row) + few_operations_error(std::abs(value));
}

// (x - mean) / deviation of a layer norm over `dim` values of mean size `magnitude`; `distance` =
// |x - mean|. The error of the mean shifts every x; the deviation's relative error is that of a
// sum of squares, of which a shifted mean is part.
inline double layer_norm_error(int dim, double magnitude, double deviation, double distance) {
  const double mean_error = sum_error(dim + 2, magnitude);
  const double relative = sum_error(dim + 4, 1) + mean_error / deviation;
  return (mean_error + (relative + 4 * kRoundoff) * distance) / deviation;
}

// Mean cosine of a block's tokens: a sum of unit vectors, squared.
inline double similarity_error(int block, int head_dim) {
  return 2 * sum_error(block + 2 * head_dim + 8, 1);
}

// A number below 1 that was published with so many digits, found by weights of `dtype`.
inline double published_digits_error(int digits, DType dtype) {
  return std::pow(10.0, -digits) + 4 * unit_roundoff(dtype);
}

}  // namespace flashomni::test
