// amx_bf16.cpp -- bf16 products by AMX tiles. Compiled with -mamx-tile -mamx-bf16; nothing here may
// run unless enable_amx_bf16().
//
// A register block is 32 rows x 32 columns: four tiles of sums, two of A, two of B, so that a step
// of 32 along K loads four tiles for four products. Rows and depths that do not fill tiles go to
// the AVX512_BF16 kernel.
// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/avx512_bf16.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "backend/cpu/bf16_attention-inl.h"

namespace flashomni::cpu {
namespace {

constexpr int kRows = 16;       // of every tile
constexpr int kTileDepth = 32;  // bf16 along K; 64 bytes, the width of a tile

// The operand of LDTILECFG (Intel SDM, volume 1, chapter "Programming with AMX").
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kConfig;

// Memory to fetch into L2, in portions.
class Ahead {
 public:
  // In `steps` portions at most.
  Ahead(const void* from, index_t bytes, int steps)
      : at_(static_cast<const char*>(from)),
        end_(from ? at_ + bytes : at_),
        portion_((bytes / kLine + steps - 1) / steps * kLine) {}
  void fetch_portion() {
    const char* until = end_ - at_ < portion_ ? end_ : at_ + portion_;
    for (; at_ < until; at_ += kLine) __builtin_prefetch(at_, 0, kIntoL2);
  }

 private:
  static constexpr index_t kLine = 64;
  const char *at_, *end_;
  index_t portion_;
};

// Tiles 0 1 / 2 3 hold the sums, 4 and 5 two tiles of A, 6 and 7 two of B.
inline void multiply_32_rows(const PanelJob& job, int row, int column, Ahead& ahead) {
  const index_t init_bytes = job.init_stride * 4, c_bytes = job.c_stride * 4;
  if (job.init) {
    const float* init = job.init + row * job.init_stride + column;
    _tile_loadd(0, init, init_bytes);
    _tile_loadd(1, init + 16, init_bytes);
    _tile_loadd(2, init + kRows * job.init_stride, init_bytes);
    _tile_loadd(3, init + kRows * job.init_stride + 16, init_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int n = 0; n < job.num_pieces; ++n) {
    const KPiece& piece = job.pieces[n];
    const index_t a_bytes = piece.a_stride * 2, b_bytes = kPanel * 4;
    const auto* a = static_cast<const std::uint16_t*>(piece.a) + row * piece.a_stride;
    const auto* b = static_cast<const std::uint16_t*>(piece.b) + column * 2;
    for (int k = 0; k < piece.depth; k += kTileDepth) {
      const auto* bk = b + k * kPanel;
      _tile_loadd(6, bk, b_bytes);
      _tile_loadd(4, a + k, a_bytes);
      ahead.fetch_portion();
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, bk + 32, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + kRows * piece.a_stride + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* c = job.c + row * job.c_stride + column;
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + kRows * job.c_stride, c_bytes);
  _tile_stored(3, c + kRows * job.c_stride + 16, c_bytes);
}

// Tiles 0 and 1 hold the sums.
inline void multiply_16_rows(const PanelJob& job, int row, int column) {
  const index_t init_bytes = job.init_stride * 4, c_bytes = job.c_stride * 4;
  if (job.init) {
    const float* init = job.init + row * job.init_stride + column;
    _tile_loadd(0, init, init_bytes);
    _tile_loadd(1, init + 16, init_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int n = 0; n < job.num_pieces; ++n) {
    const KPiece& piece = job.pieces[n];
    const auto* a = static_cast<const std::uint16_t*>(piece.a) + row * piece.a_stride;
    const auto* b = static_cast<const std::uint16_t*>(piece.b) + column * 2;
    for (int k = 0; k < piece.depth; k += kTileDepth) {
      _tile_loadd(4, a + k, piece.a_stride * 2);
      _tile_loadd(6, b + k * kPanel, kPanel * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + k * kPanel + 32, kPanel * 4);
      _tile_dpbf16ps(1, 4, 7);
    }
  }
  float* c = job.c + row * job.c_stride + column;
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
}

bool fills_tiles(const PanelJob& job) {
  for (int n = 0; n < job.num_pieces; ++n) {
    if (job.pieces[n].depth % kTileDepth != 0) return false;
  }
  return true;
}

struct TileProduct {
  static constexpr int kGranule = kTileDepth;
  static constexpr int kScoreRows = 32;  // scores go from tiles to weights through L1
  static void begin() { _tile_loadconfig(&kConfig); }
  static void end() { _tile_release(); }
  static void multiply(const PanelJob& job) {
    int row = 0;
    if (job.rows >= kRows && fills_tiles(job)) {
      const int steps = job.rows / (2 * kRows) * (kPanel / 32) * (job.depth() / kTileDepth);
      Ahead ahead(job.next_b, index_t{job.depth()} * kPanel * 2, steps > 0 ? steps : 1);
      for (; row + 2 * kRows <= job.rows; row += 2 * kRows) {
        for (int column = 0; column < kPanel; column += 32) {
          multiply_32_rows(job, row, column, ahead);
        }
      }
      for (; row + kRows <= job.rows; row += kRows) {
        for (int column = 0; column < kPanel; column += 32) multiply_16_rows(job, row, column);
      }
    }
    if (row < job.rows) avx512_bf16_panel_rows(job, row);
  }
};

void multiply_panel(const PanelJob& job) {
  TileProduct::begin();
  TileProduct::multiply(job);
  TileProduct::end();
}

double multiply_tiles(int rounds) {
  _tile_loadconfig(&kConfig);
  for (int round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4 * 2.0 * kRows * kRows * kTileDepth * rounds;
}

}  // namespace

const ProductKernels* amx_bf16_products() {
  static constexpr ProductKernels kProducts{
      .operand = DType::kBF16,
      .panel = &multiply_panel,
      .attention = {&attend<TileProduct>, &bf16_attention_scratch_bytes},
      .peak_loop = &multiply_tiles,
      .tile_rows = 96,
      .pack_values = &pack_values<TileProduct::kGranule>,
      .value_granule = TileProduct::kGranule};
  return &kProducts;
}

}  // namespace flashomni::cpu

#else

namespace flashomni::cpu {

const ProductKernels* amx_bf16_products() { return nullptr; }

}  // namespace flashomni::cpu

#endif
