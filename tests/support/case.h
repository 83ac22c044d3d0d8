// case.h -- random operator calls: tensors, masks, canaries.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "flashomni/symbols.h"
#include "flashomni/tensor.h"

#include "core/half.h"

namespace flashomni::test {

// A token axis cut into blocks, described without the library's own types.
struct Axis {
  int tokens = 0, block = 64;
  std::vector<int> lengths = {};  // [batch]; empty: all full
  int text = 0;
  TextPosition position = TextPosition::kNone;

  int length(int item) const { return lengths.empty() ? tokens : lengths[item]; }
  BlockGrid grid(int batch) const {
    return BlockGrid(block, batch, make_segments(tokens, text, position), lengths);
  }
};

// Dense masks as a caller would pass them, canonical or not.
struct Sparsity {
  int batch = 1, num_heads = 1;
  Axis q, kv;
  std::vector<std::uint8_t> cache, skip;

  SparseSymbols symbols() const {
    const BlockGrid q_grid = q.grid(batch), kv_grid = kv.grid(batch);
    const index_t q_blocks = q_grid.num_blocks(), kv_blocks = kv_grid.num_blocks();
    return SparseSymbols::from_masks(
        q_grid, kv_grid, num_heads,
        ConstTensorView(cache.data(), DType::kU8, {batch, num_heads, q_blocks}),
        ConstTensorView(skip.data(), DType::kU8, {batch, num_heads, q_blocks, kv_blocks}));
  }
};

enum class Pattern {
  kAllLive,
  kAllCached,
  kRandom,     // 30 % cached, half of the rest skipped
  kClustered,  // a band along the diagonal and the first kv block; a run of cached blocks
  kSkewed,     // one long row in each head, the others keep one block; the last head nearly cached
  kEmptyRows,  // random, and live rows that keep nothing
  kOneBlock,   // one pair of blocks in the whole call
};
inline constexpr Pattern kPatterns[] = {
    Pattern::kAllLive, Pattern::kAllCached, Pattern::kRandom,  Pattern::kClustered,
    Pattern::kSkewed,  Pattern::kEmptyRows, Pattern::kOneBlock};

inline Sparsity make_sparsity(int batch, int num_heads, const Axis& q, const Axis& kv,
                              Pattern pattern, unsigned seed = 0) {
  Sparsity sparsity{batch, num_heads, q, kv, {}, {}};
  const int q_blocks = q.grid(batch).num_blocks(), kv_blocks = kv.grid(batch).num_blocks();
  std::mt19937 random(seed + 17);
  const auto chance = [&](double p) { return random() < p * 4294967296.0; };
  const auto is_live = [&](int head, int i) {
    switch (pattern) {
      case Pattern::kAllLive: return true;
      case Pattern::kAllCached: return false;
      case Pattern::kClustered: return (i + head) % 5 < 3;
      case Pattern::kSkewed: return head + 1 < num_heads || i == 0;
      case Pattern::kOneBlock: return head + 1 == num_heads && i + 1 == q_blocks;
      default: return chance(0.7);
    }
  };
  const auto is_used = [&](int head, int i, int j) {
    switch (pattern) {
      case Pattern::kAllLive: return true;
      case Pattern::kClustered: return j == 0 || std::abs(i * kv_blocks / q_blocks - j) <= 1;
      case Pattern::kSkewed: return i == head % q_blocks || j == (7 * i + head) % kv_blocks;
      case Pattern::kEmptyRows: return (i + head) % 3 != 1 && chance(0.5);
      case Pattern::kOneBlock: return j + 1 == kv_blocks;
      default: return chance(0.5);
    }
  };
  for (int item = 0; item < batch; ++item) {
    for (int row = 0; row < num_heads * q_blocks; ++row) {
      sparsity.cache.push_back(is_live(row / q_blocks, row % q_blocks) &&
                               (pattern != Pattern::kOneBlock || item == 0));
      for (int j = 0; j < kv_blocks; ++j) {
        sparsity.skip.push_back(is_used(row / q_blocks, row % q_blocks, j));
      }
    }
  }
  return sparsity;
}

// Normal numbers, rounded to `dtype`.
inline Tensor random_tensor(DType dtype, Layout layout, unsigned seed, double deviation = 1) {
  Tensor tensor = Tensor::host(dtype, layout);
  std::mt19937 random(seed * 7919 + 1);
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  for (index_t i = 0; i < tensor.num_elements(); ++i) store_float(tensor, i, normal(random));
  return tensor;
}

// A NaN that no computation makes: whoever reads it shows, whoever writes it shows.
inline std::uint32_t canary_bits(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x7fd5;
    case DType::kF16: return 0x7ed5;
    case DType::kU8: return 0xd5;
    default: return 0x7fd5d5d5;
  }
}

inline void fill_canary(TensorView contiguous) {
  const std::uint32_t bits = canary_bits(contiguous.dtype);
  const index_t size = size_in_bytes(contiguous.dtype);
  for (index_t i = 0; i < contiguous.layout.num_elements(); ++i) {
    std::memcpy(contiguous.as<char>() + i * size, &bits, static_cast<std::size_t>(size));
  }
}

inline Tensor canary_tensor(DType dtype, Layout layout) {
  Tensor tensor = Tensor::host(dtype, layout);
  fill_canary(tensor);
  return tensor;
}

inline std::uint32_t bits_of(ConstTensorView contiguous, index_t i) {
  std::uint32_t bits = 0;
  const index_t size = size_in_bytes(contiguous.dtype);
  std::memcpy(&bits, contiguous.as<char>() + i * size, static_cast<std::size_t>(size));
  return bits;
}

inline bool same_bits(ConstTensorView a, ConstTensorView b) {
  return a.dtype == b.dtype && a.layout.sizes == b.layout.sizes &&
         std::memcmp(a.data, b.data,
                     static_cast<std::size_t>(a.layout.num_elements() * size_in_bytes(a.dtype))) ==
             0;
}

// The elements [begin, end) of the axes before `axis` and of `axis` itself, as canaries: what must
// never be read. `slice` need not be contiguous; its last axis has stride 1.
inline void poison(TensorView slice) {
  if (slice.rank() == 1) {
    slice.layout.strides[0] = 1;
    fill_canary(slice);
    return;
  }
  for (index_t i = 0; i < slice.size(0); ++i) {
    TensorView row = slice.slice(0, i, i + 1);
    row.layout.rank -= 1;
    for (int axis = 0; axis < row.layout.rank; ++axis) {
      row.layout.sizes[axis] = row.layout.sizes[axis + 1];
      row.layout.strides[axis] = row.layout.strides[axis + 1];
    }
    poison(row);
  }
}

}  // namespace flashomni::test
