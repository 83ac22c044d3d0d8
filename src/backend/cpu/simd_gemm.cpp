// simd_gemm.cpp -- the f32 panel product: a 6 x 4 block of vectors stays in registers over the
// whole list of K pieces; A is broadcast from row-major memory, B is read from its packed panel.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd_gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashomni::cpu {
namespace HWY_NAMESPACE {
namespace {

// 24 sums + 4 of B + 1 of A of 32 registers; AVX2 has 16: 12 + 2 + 1.
constexpr int kRows = 6;
constexpr int kVectors = kLanes == 8 ? 2 : 4;
constexpr int kColumns = kVectors * kLanes;
static_assert(kPanel % kColumns == 0);

// Where the prefetches of job.next_b have got to.
struct Ahead {
  const float* at;
  int stride;  // floats for two steps
};

Ahead begin_ahead(const PanelJob& job) {
  const int blocks = (job.rows + kRows - 1) / kRows * (kPanel / kColumns);
  return {static_cast<const float*>(job.next_b), prefetch_stride(2 * kPanel, blocks)};
}

template <int kR>
HWY_INLINE void multiply_block(const PanelJob& job, int row, int column, Ahead& ahead) {
  const Floats d;
  FloatVec sums[kR][kVectors];
  const float* init = job.init + row * job.init_stride + column;
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = hn::LoadU(d, init + r * job.init_stride + v * kLanes);
    }
  }
  Ahead fetch = ahead;  // in registers
  for (int piece = 0; piece < job.num_pieces; ++piece) {
    const index_t a_stride = job.pieces[piece].a_stride;
    const float* a = static_cast<const float*>(job.pieces[piece].a) + row * a_stride;
    const float* b = static_cast<const float*>(job.pieces[piece].b) + column;
    const int depth = job.pieces[piece].depth;
    const auto step = [&](int k) HWY_ATTR {
      FloatVec bv[kVectors];
      HWY_UNROLL(4) for (int v = 0; v < kVectors; ++v) {
        bv[v] = hn::LoadU(d, b + static_cast<index_t>(k) * kPanel + v * kLanes);
      }
      HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
        const FloatVec av = hn::Set(d, a[r * a_stride + k]);
        HWY_UNROLL(4) for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = hn::MulAdd(av, bv[v], sums[r][v]);
        }
      }
    };
    int k = 0;
    for (; k + 2 <= depth; k += 2, fetch.at += fetch.stride) {
      __builtin_prefetch(fetch.at, 0, kIntoL2);
      step(k);
      step(k + 1);
    }
    if (k < depth) step(k);
  }
  ahead = fetch;
  float* c = job.c + row * job.c_stride + column;
  HWY_UNROLL(6) for (int r = 0; r < kR; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[r][v], d, c + r * job.c_stride + v * kLanes);
    }
  }
}

HWY_INLINE void multiply_tail(const PanelJob& job, int row, int column, Ahead& ahead) {
  switch (job.rows - row) {
    case 1: return multiply_block<1>(job, row, column, ahead);
    case 2: return multiply_block<2>(job, row, column, ahead);
    case 3: return multiply_block<3>(job, row, column, ahead);
    case 4: return multiply_block<4>(job, row, column, ahead);
    case 5: return multiply_block<5>(job, row, column, ahead);
    default: return;
  }
}

void multiply_panel(const PanelJob& job) {
  Ahead ahead = begin_ahead(job);
  for (int column = 0; column < kPanel; column += kColumns) {
    int row = 0;
    for (; row + kRows <= job.rows; row += kRows) multiply_block<kRows>(job, row, column, ahead);
    multiply_tail(job, row, column, ahead);
  }
}

}  // namespace

constexpr auto* kMultiplyPanel = &multiply_panel;

}  // namespace HWY_NAMESPACE
}  // namespace flashomni::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashomni::cpu {

PanelKernel f32_panel(SimdTarget target) {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case SimdTarget::kAvx512: return N_AVX3::kMultiplyPanel;
#endif
#if HWY_TARGETS & HWY_AVX2
    case SimdTarget::kAvx2: return N_AVX2::kMultiplyPanel;
#endif
    default: return HWY_STATIC_DISPATCH(kMultiplyPanel);
  }
}

}  // namespace flashomni::cpu
#endif  // HWY_ONCE
