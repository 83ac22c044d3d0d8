// simd-inl.h -- float vectors for one Highway target: loads, stores, exp2. Included once a target.
// SPDX-License-Identifier: Apache-2.0
#if defined(FLASHOMNI_CPU_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHOMNI_CPU_SIMD_INL_H
#undef FLASHOMNI_CPU_SIMD_INL_H
#else
#define FLASHOMNI_CPU_SIMD_INL_H
#endif

#include <hwy/highway.h>

#include "core/half.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;  // at most 512 bits: a fixed size, so arrays work
using FloatVec = hn::Vec<Floats>;
inline constexpr int kLanes = HWY_LANES(float) < 16 ? HWY_LANES(float) : 16;
using OneFloat = hn::CappedTag<float, 1>;  // for tails: the same code, one lane

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const BFloat16* from) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<std::uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Half* from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, float* to) {
  hn::StoreU(value, d, to);
}
// Rounds to nearest even like to_bfloat16; Highway 1.0.3's own conversion truncates.
template <class D>
HWY_INLINE void store(D, hn::Vec<D> value, BFloat16* to) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<std::uint32_t, D> d32;
  const hn::Rebind<std::int32_t, D> i32;
  const auto bits = hn::BitCast(d32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff)));
  const auto quiet_nan = hn::Or(bits, hn::Set(d32, 0x400000));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(value));
  const auto high = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet_nan, rounded));
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(i32, high)), d16, reinterpret_cast<std::uint16_t*>(to));
}
template <class D>
HWY_INLINE void store([[maybe_unused]] D d, hn::Vec<D> value, Half* to) {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR  // there Highway 1.0.3 truncates
  float lanes[kLanes];
  hn::StoreU(value, d, lanes);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) to[i] = to_half(lanes[i]);
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, value), d16, reinterpret_cast<hwy::float16_t*>(to));
#endif
}

// 1 + c[0] f + ... + c[4] f^5
template <class D>
HWY_INLINE hn::Vec<D> polynomial(D d, hn::Vec<D> f, const float (&c)[5]) {
  auto p = hn::Set(d, c[4]);
  HWY_UNROLL(4) for (int i = 3; i >= 0; --i) p = hn::MulAdd(p, f, hn::Set(d, c[i]));
  return hn::MulAdd(p, f, hn::Set(d, 1.0f));
}

#if HWY_TARGET == HWY_AVX3
// x - floor(x), and p * 2^floor(x).
HWY_INLINE FloatVec fraction(FloatVec x) {
  return FloatVec{_mm512_reduce_ps(x.raw, _MM_FROUND_TO_NEG_INF)};
}
HWY_INLINE FloatVec scale_by_floor(FloatVec p, FloatVec x) {
  return FloatVec{_mm512_scalef_ps(p.raw, x.raw)};
}
HWY_INLINE hn::Vec<OneFloat> fraction(hn::Vec<OneFloat> x) {
  return hn::Vec<OneFloat>{_mm_reduce_ps(x.raw, _MM_FROUND_TO_NEG_INF)};
}
HWY_INLINE hn::Vec<OneFloat> scale_by_floor(hn::Vec<OneFloat> p, hn::Vec<OneFloat> x) {
  return hn::Vec<OneFloat>{_mm_scalef_ps(p.raw, x.raw)};
}
#endif

// 2^x for x <= 127; 0 is returned as 2^-126 and below that. x = n + f, and 2^f is a polynomial that
// is exact at 0 (minimax; relative error 1.7e-7 with rounding).
template <class D>
HWY_INLINE hn::Vec<D> exp2(D d, hn::Vec<D> x) {
  x = hn::Max(x, hn::Set(d, -126.0f));
#if HWY_TARGET == HWY_AVX3  // f in [0, 1)
  constexpr float kFrom0To1[] = {6.9315131182e-1f, 2.4016445004e-1f, 5.5799913425e-2f,
                                 9.0170299625e-3f, 1.8671302120e-3f};
  return scale_by_floor(polynomial(d, fraction(x), kFrom0To1), x);
#else  // f in [-0.5, 0.5]: adding 1.5 * 2^23 leaves round(x) in the low mantissa bits
  const hn::RebindToSigned<D> di;
  constexpr float kAround0[] = {6.9314697760e-1f, 2.4022242085e-1f, 5.5507337372e-2f,
                                9.6715126398e-3f, 1.3264729096e-3f};
  const auto magic = hn::Set(d, 12582912.0f);
  const auto shifted = hn::Add(x, magic);
  const auto p = polynomial(d, hn::Sub(x, hn::Sub(shifted, magic)), kAround0);
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
#endif
}

// Calls body(tag, i) for i = 0, kLanes, ... with full vectors, then with one lane.
template <class Body>
HWY_INLINE void for_each_vector(index_t count, const Body& body) {
  index_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(Floats(), i);
  for (; i < count; ++i) body(OneFloat(), i);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
