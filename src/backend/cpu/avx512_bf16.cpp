// avx512_bf16.cpp -- bf16 products by vdpbf16ps. Compiled with -mavx512bf16 (src/CMakeLists.txt),
// so nothing here may run, and no inline function of a header may be instantiated here for others,
// unless has_avx512_bf16().
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/avx512_bf16.h"

#if defined(__AVX512BF16__)

#include "backend/cpu/bf16_attention-inl.h"

namespace flashomni::cpu {
namespace {

// Six rows of four registers hide the latency of vdpbf16ps and leave room for B.
constexpr int kRows = 6;

inline __m512bh broadcast_pair(const std::uint16_t* pair) {
  std::int32_t both;  // may lie at any even address
  __builtin_memcpy(&both, pair, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

template <int kR>
void multiply_rows(const PanelJob& job, int row) {
  __m512 sums[kR][kVectors];
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = job.init ? _mm512_loadu_ps(job.init + (row + r) * job.init_stride + 16 * v)
                            : _mm512_setzero_ps();
    }
  }
  for (int n = 0; n < job.num_pieces; ++n) {
    const KPiece& piece = job.pieces[n];
    const auto* a = static_cast<const std::uint16_t*>(piece.a) + row * piece.a_stride;
    const auto* b = static_cast<const std::uint16_t*>(piece.b);
    for (int k = 0; k < piece.depth; k += 2, b += 2 * kPanel) {
      __m512bh bv[kVectors];
      for (int v = 0; v < kVectors; ++v) bv[v] = (__m512bh)_mm512_loadu_si512(b + 32 * v);
      for (int r = 0; r < kR; ++r) {
        const __m512bh av = broadcast_pair(a + r * piece.a_stride + k);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], av, bv[v]);
      }
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(job.c + (row + r) * job.c_stride + 16 * v, sums[r][v]);
    }
  }
}

void multiply_panel(const PanelJob& job) { avx512_bf16_panel_rows(job, 0); }

// Twenty independent sums hide the latency and leave the loop short.
double multiply_registers(int rounds) {
  constexpr int kSums = 20;
  __m512 sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto x = (__m512bh)_mm512_set1_epi16(0x3f00);  // 0.5
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 20
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
  }
  [[maybe_unused]] volatile float sink = 0;
  for (int i = 0; i < kSums; ++i) sink = _mm512_cvtss_f32(sums[i]);
  return 2.0 * 32 * kSums * rounds;
}

struct PairProduct {
  static constexpr int kGranule = 2, kScoreRows = kMaxRun;
  static void begin() {}
  static void end() {}
  static void multiply(const PanelJob& job) { multiply_panel(job); }
};

}  // namespace

void avx512_bf16_panel_rows(const PanelJob& job, int first_row) {
  int row = first_row;
  for (; row + kRows <= job.rows; row += kRows) multiply_rows<kRows>(job, row);
  for (; row + 2 <= job.rows; row += 2) multiply_rows<2>(job, row);
  if (row < job.rows) multiply_rows<1>(job, row);
}

const ProductKernels* avx512_bf16_products() {
  static constexpr ProductKernels kProducts{
      .operand = DType::kBF16,
      .panel = &multiply_panel,
      .attention = {&attend<PairProduct>, &bf16_attention_scratch_bytes},
      .peak_loop = &multiply_registers,
      .tile_rows = 96,
      .pack_values = &pack_values<PairProduct::kGranule>,
      .value_granule = PairProduct::kGranule};
  return &kProducts;
}

}  // namespace flashomni::cpu

#else

namespace flashomni::cpu {

const ProductKernels* avx512_bf16_products() { return nullptr; }

}  // namespace flashomni::cpu

#endif
