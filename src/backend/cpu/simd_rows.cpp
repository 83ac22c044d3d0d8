// simd_rows.cpp -- everything elementwise: epilogues of the projections, norms, forecasts.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504089f;

// x / (1 + 2^-y)
template <class D>
HWY_INLINE hn::Vec<D> times_sigmoid(D d, hn::Vec<D> x, hn::Vec<D> y_log2) {
  return hn::Div(x,
                 hn::Add(hn::Set(d, 1.0f), exp2(d, hn::Neg(hn::Max(y_log2, hn::Set(d, -126.0f))))));
}

template <class D>
HWY_INLINE hn::Vec<D> activate(D d, Activation activation, hn::Vec<D> x) {
  switch (activation) {
    case Activation::kGeluTanh: {
      // 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      constexpr float kTwoU = 2.0f * 0.7978845608f * kLog2E;
      const auto cubic =
          hn::MulAdd(hn::Mul(x, x), hn::Set(d, 0.044715f * kTwoU), hn::Set(d, kTwoU));
      return times_sigmoid(d, x, hn::Mul(x, cubic));
    }
    case Activation::kSilu: return times_sigmoid(d, x, hn::Mul(x, hn::Set(d, kLog2E)));
    case Activation::kNone: break;
  }
  return x;
}

void store_tile(const float* c, index_t c_stride, int rows, int columns, Activation activation,
                const Destination& to) {
  dispatch_float(to.dtype, [&](auto type) HWY_ATTR {
    using T = decltype(type);
    for (int r = 0; r < rows; ++r) {
      const float* from = c + r * c_stride;
      T* out = static_cast<T*>(to.data) + r * to.stride;
      for_each_vector(columns, [&](auto d, index_t i) HWY_ATTR {
        store(d, activate(d, activation, load(d, from + i)), out + i);
      });
    }
  });
}

HWY_INLINE float sum_of_squares(const float* x, index_t count) {
  const Floats d;
  FloatVec sums = hn::Zero(d);
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const FloatVec v = hn::LoadU(d, x + i);
    sums = hn::MulAdd(v, v, sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

// (a, b) -> (a cos - b sin, a sin + b cos) for the interleaved pairs of one row.
HWY_INLINE void rotate_row(float* x, const float* cos, const float* sin, int head_dim) {
  int pair = 0;
  if constexpr (kLanes <= 16) {
    const Floats d;
    for (; pair + kLanes <= head_dim / 2; pair += kLanes) {
      FloatVec a, b;
      hn::LoadInterleaved2(d, x + 2 * pair, a, b);
      const FloatVec c = hn::LoadU(d, cos + pair), s = hn::LoadU(d, sin + pair);
      hn::StoreInterleaved2(hn::MulSub(a, c, hn::Mul(b, s)), hn::MulAdd(a, s, hn::Mul(b, c)), d,
                            x + 2 * pair);
    }
  }
  for (; pair < head_dim / 2; ++pair) {
    const float a = x[2 * pair], b = x[2 * pair + 1];
    x[2 * pair] = a * cos[pair] - b * sin[pair];
    x[2 * pair + 1] = a * sin[pair] + b * cos[pair];
  }
}

void norm_rope_tile(float* c, index_t c_stride, int rows, int head_dim,
                    const NormRopeTile& epilogue) {
  for (int r = 0; r < rows; ++r) {
    float* x = c + r * c_stride;
    if (epilogue.norm_weight) {
      const float mean_square = sum_of_squares(x, head_dim) / static_cast<float>(head_dim);
      const float inverse = 1.0f / std::sqrt(mean_square + epilogue.eps);
      for_each_vector(head_dim, [&](auto d, index_t i) HWY_ATTR {
        const auto normed = hn::Mul(load(d, x + i), hn::Set(d, inverse));
        store(d, hn::Mul(normed, load(d, epilogue.norm_weight + i)), x + i);
      });
    }
    if (epilogue.cos) {
      rotate_row(x, epilogue.cos + r * epilogue.cos_stride, epilogue.sin + r * epilogue.sin_stride,
                 head_dim);
    }
  }
}

void combine(const float* const* terms, const float* coefficients, int num_terms, index_t count,
             void* out, DType out_dtype) {
  dispatch_float(out_dtype, [&](auto type) HWY_ATTR {
    auto* to = static_cast<decltype(type)*>(out);
    for_each_vector(count, [&](auto d, index_t i) HWY_ATTR {
      auto sum = hn::Mul(hn::Set(d, coefficients[0]), load(d, terms[0] + i));
      for (int term = 1; term < num_terms; ++term) {
        sum = hn::MulAdd(hn::Set(d, coefficients[term]), load(d, terms[term] + i), sum);
      }
      store(d, sum, to + i);
    });
  });
}

void push_differences(const float* value, int order, float steps, float* const* terms,
                      index_t count) {
  for_each_vector(count, [&](auto d, index_t i) HWY_ATTR {
    auto current = load(d, value + i);
    for (int term = 0; term < order; ++term) {
      const auto old = load(d, terms[term] + i);
      store(d, current, terms[term] + i);
      current = hn::Div(hn::Sub(current, old), hn::Set(d, steps));
    }
    store(d, current, terms[order] + i);
  });
}

HWY_INLINE float sum_of(const float* x, index_t count) {
  const Floats d;
  FloatVec sums = hn::Zero(d);
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums = hn::Add(sums, hn::LoadU(d, x + i));
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += x[i];
  return sum;
}

HWY_INLINE float sum_of_squared_deviations(const float* x, float mean, index_t count) {
  const Floats d;
  FloatVec sums = hn::Zero(d);
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const FloatVec deviation = hn::Sub(hn::LoadU(d, x + i), hn::Set(d, mean));
    sums = hn::MulAdd(deviation, deviation, sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum;
}

void norm_modulate(const float* x, const float* shift, const float* scale, float eps, index_t count,
                   void* out, DType out_dtype) {
  const float n = static_cast<float>(count);
  const float mean = sum_of(x, count) / n;
  const float inverse = 1.0f / std::sqrt(sum_of_squared_deviations(x, mean, count) / n + eps);
  dispatch_float(out_dtype, [&](auto type) HWY_ATTR {
    auto* to = static_cast<decltype(type)*>(out);
    for_each_vector(count, [&](auto d, index_t i) HWY_ATTR {
      const auto normed = hn::Mul(hn::Sub(load(d, x + i), hn::Set(d, mean)), hn::Set(d, inverse));
      const auto factor = hn::Add(hn::Set(d, 1.0f), load(d, scale + i));
      store(d, hn::MulAdd(normed, factor, load(d, shift + i)), to + i);
    });
  });
}

void gated_add(const void* y, DType y_dtype, const float* gate, float* residual, index_t count) {
  dispatch_float(y_dtype, [&](auto type) HWY_ATTR {
    const auto* from = static_cast<const decltype(type)*>(y);
    for_each_vector(count, [&](auto d, index_t i) HWY_ATTR {
      const auto factor = gate ? load(d, gate + i) : hn::Set(d, 1.0f);
      store(d, hn::MulAdd(factor, load(d, from + i), load(d, residual + i)), residual + i);
    });
  });
}

void widen(const void* from, DType from_dtype, float* to, index_t count) {
  dispatch_float(from_dtype, [&](auto type) HWY_ATTR {
    const auto* values = static_cast<const decltype(type)*>(from);
    for_each_vector(count,
                    [&](auto d, index_t i) HWY_ATTR { store(d, load(d, values + i), to + i); });
  });
}

void add_scaled(const float* x, float factor, float* sum, index_t count) {
  for_each_vector(count, [&](auto d, index_t i) HWY_ATTR {
    store(d, hn::MulAdd(hn::Set(d, factor), load(d, x + i), load(d, sum + i)), sum + i);
  });
}

float dot(const float* x, const float* y, index_t count) {
  const Floats d;
  FloatVec sums = hn::Zero(d);
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    sums = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace

constexpr RowKernels kRowKernels{
    &store_tile, &norm_rope_tile, &combine, &push_differences, &norm_modulate, &gated_add,
    &widen,      &add_scaled,     &dot};

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashomni::cpu {

const RowKernels& row_kernels(SimdTarget target) {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case SimdTarget::kAvx512: return N_AVX3::kRowKernels;
#endif
#if HWY_TARGETS & HWY_AVX2
    case SimdTarget::kAvx2: return N_AVX2::kRowKernels;
#endif
    default: return HWY_STATIC_DISPATCH(kRowKernels);
  }
}

}  // namespace flashomni::cpu
#endif  // HWY_ONCE
