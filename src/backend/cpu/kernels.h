// kernels.h -- what differs between instruction sets, as tables of plain functions.
//
// Drivers (gemm.cpp, attention.cpp, cpu_backend.cpp) cut a call into jobs; a kernel runs one job
// on one thread. Matrix operands are f32 or, in the bf16 sets, pairs of bf16; sums are fp32.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "flashomni/backend.h"  // Activation

namespace flashomni::cpu {

// Output columns of a packed weight panel, and query rows ("lanes") of an attention chunk: four
// 512-bit registers of floats, so that a 6 x 4 block of sums hides the latency of an FMA.
inline constexpr int kPanel = 64;

// A stretch of the K axis: `depth` columns of A against as many rows of a B panel.
//   A  row-major                 B  f32 [depth][kPanel] or bf16 [depth / 2][kPanel][2]
// `depth` is even in the bf16 kernels.
struct KPiece {
  const void* a = nullptr;  // row 0
  index_t a_stride = 0;     // elements between rows
  const void* b = nullptr;
  int depth = 0;
};

// c[r, 0..kPanel) = init[r, 0..kPanel) + the sum over `pieces`, added one k after the other.
struct PanelJob {
  const KPiece* pieces = nullptr;
  int num_pieces = 0;
  int rows = 0;
  const float* init = nullptr;  // may be c; stride 0: one row for all; bf16 only, nullptr: zeros
  index_t init_stride = 0;
  float* c = nullptr;
  index_t c_stride = 0;
  // What to fetch into L2 meanwhile: the memory that B goes on in, as large as B. Or nullptr.
  const void* next_b = nullptr;

  int depth() const {
    int sum = 0;
    for (int n = 0; n < num_pieces; ++n) sum += pieces[n].depth;
    return sum;
  }
};

// How near to the core prefetched lines go; the third argument of __builtin_prefetch.
enum Nearness { kIntoL2 = 2, kIntoL1 = 3 };
// Floats between the prefetches of `steps` steps that together cover `size` floats, a cache line at
// most. Even, because requests that come faster than L3 answers hold up the loads between them.
constexpr int prefetch_stride(int size, int steps) {
  constexpr int kLine = 64 / sizeof(float);
  return std::min(kLine, (size + steps - 1) / steps);
}

using PanelKernel = void (*)(const PanelJob&);

// Tokens of K and V to attend to, one after the other.
struct KvRun {
  int start = 0, count = 0;
};

// One live query block of one head. q, k, v and out point to token 0 of this item and head; strides
// are elements between tokens.
struct AttentionJob {
  const void* q = nullptr;
  index_t q_stride = 0;
  const void *k = nullptr, *v = nullptr;
  index_t k_stride = 0, v_stride = 0;
  int packed_tokens = 0;  // of V, where it is in the order of ProductKernels::pack_values
  int head_dim = 0;
  int first_row = 0, num_rows = 0;  // of the query block
  float scale = 0;
  const KvRun* runs = nullptr;
  int num_runs = 0;
  void* out = nullptr;
  index_t out_stride = 0;
  DType out_dtype = DType::kF32;
  float* lse = nullptr;  // or nullptr
  void* scratch = nullptr;
};

// Bound of AttentionKernel::max_run.
inline constexpr int kMaxRun = 128;

struct AttentionKernel {
  void (*run)(const AttentionJob&) = nullptr;
  std::size_t (*scratch_bytes)(int head_dim) = nullptr;
  int max_run = kMaxRun;  // tokens; runs are cut to this many, so that scores stay near the core
};

// Runs the multiply instruction on registers alone; returns the floating-point operations done.
using PeakLoop = double (*)(int rounds);

// The matrix products of one operand type.
struct ProductKernels {
  DType operand = DType::kF32;  // kF32 or kBF16
  PanelKernel panel = nullptr;
  AttentionKernel attention;
  PeakLoop peak_loop = nullptr;
  // Rows of a tile of a projection: a multiple of the kernel's register block, small enough that A
  // of the tile stays in L2 while the weight passes through.
  int tile_rows = 48;

  // Values in the order `attention` reads: `count` tokens of V (one kv block) at `packed_start`, a
  // multiple of `value_granule`, in memory of packed_tokens * head_dim elements, zero-padded to the
  // next multiple. nullptr: rows after rows, like K.
  void (*pack_values)(const void* v, index_t v_stride, int count, int head_dim, int packed_start,
                      int packed_tokens, void* packed) = nullptr;
  int value_granule = 1;
};

struct NormRopeTile {
  const float* norm_weight = nullptr;  // [head_dim] or nullptr
  float eps = 0;
  const float *cos = nullptr, *sin = nullptr;  // of the tile's first row, or nullptr
  index_t cos_stride = 0, sin_stride = 0;
};

struct Destination {
  void* data = nullptr;
  index_t stride = 0;  // elements between rows
  DType dtype = DType::kF32;
};

// Everything elementwise; `count` is in elements.
struct RowKernels {
  // to[r, 0..columns) = activation(c[r, 0..columns))
  void (*store_tile)(const float* c, index_t c_stride, int rows, int columns, Activation activation,
                     const Destination& to) = nullptr;
  void (*norm_rope_tile)(float* c, index_t c_stride, int rows, int head_dim,
                         const NormRopeTile& epilogue) = nullptr;
  // out[i] = sum over o of coefficients[o] * terms[o][i]
  void (*combine)(const float* const* terms, const float* coefficients, int num_terms,
                  index_t count, void* out, DType out_dtype) = nullptr;
  // terms[0] <- value, terms[o + 1] <- (new terms[o] - old terms[o]) / steps for o < order
  void (*push_differences)(const float* value, int order, float steps, float* const* terms,
                           index_t count) = nullptr;
  void (*norm_modulate)(const float* x, const float* shift, const float* scale, float eps,
                        index_t count, void* out, DType out_dtype) = nullptr;
  // residual += gate * y; gate may be nullptr = 1
  void (*gated_add)(const void* y, DType y_dtype, const float* gate, float* residual,
                    index_t count) = nullptr;
  void (*widen)(const void* from, DType from_dtype, float* to, index_t count) = nullptr;
  // sum[i] += factor * x[i]
  void (*add_scaled)(const float* x, float factor, float* sum, index_t count) = nullptr;
  float (*dot)(const float* x, const float* y, index_t count) = nullptr;
};

// Compiled from one source for several targets (simd_*.cpp); kPortable is what the compiler's
// default flags allow: plain C++ on x86, NEON on Arm.
enum class SimdTarget { kPortable, kAvx2, kAvx512 };
const RowKernels& row_kernels(SimdTarget target);
PanelKernel f32_panel(SimdTarget target);
const AttentionKernel& f32_attention(SimdTarget target);
PeakLoop f32_peak_loop(SimdTarget target);

// nullptr when not compiled in (another architecture); see cpu_features.h for what may run.
const ProductKernels* avx512_bf16_products();
const ProductKernels* amx_bf16_products();

}  // namespace flashomni::cpu
