// simd_peak.cpp -- the rate of f32 multiply-adds when nothing has to be loaded.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd_peak.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {
namespace {

// Twelve independent sums hide a latency of 4 to 6 cycles on two units and fit 16 registers.
double multiply_registers(int rounds) {
  constexpr int kSums = 12;
  const Floats d;
  FloatVec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Set(d, static_cast<float>(i));
  const FloatVec x = hn::Set(d, 0.999f), y = hn::Set(d, 1e-3f);
  for (int round = 0; round < rounds; ++round) {
    HWY_UNROLL(12) for (int i = 0; i < kSums; ++i) sums[i] = hn::MulAdd(sums[i], x, y);
  }
  FloatVec total = sums[0];
  for (int i = 1; i < kSums; ++i) total = hn::Add(total, sums[i]);
  [[maybe_unused]] volatile float sink = hn::GetLane(total);  // the sums are needed
  return 2.0 * kSums * kLanes * rounds;
}

}  // namespace

constexpr auto* kMultiplyRegisters = &multiply_registers;

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashomni::cpu {

PeakLoop f32_peak_loop(SimdTarget target) {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case SimdTarget::kAvx512: return N_AVX3::kMultiplyRegisters;
#endif
#if HWY_TARGETS & HWY_AVX2
    case SimdTarget::kAvx2: return N_AVX2::kMultiplyRegisters;
#endif
    default: return HWY_STATIC_DISPATCH(kMultiplyRegisters);
  }
}

}  // namespace flashomni::cpu
#endif  // HWY_ONCE
