// The byte format of the published code: per item, bits in q_block-major order, LSB first.
#include <utility>

#include "flashomni/symbols.h"

#include "core/check.h"

namespace flashomni {
namespace {

// The format counts an item's own blocks; ours are padded to the longest item. Valid blocks lead.
int own_blocks(const BlockGrid& grid, int item) {
  int count = 0;
  while (count < grid.num_blocks() && grid.at(item, count).count > 0) ++count;
  return count;
}

class BitWriter {
 public:
  explicit BitWriter(std::vector<std::uint8_t>& bytes) : bytes_(bytes) {}
  void push(bool bit) {
    if (used_ == 0) bytes_.push_back(0);
    bytes_.back() |= static_cast<std::uint8_t>(bit << used_);
    used_ = (used_ + 1) % 8;
  }

 private:
  std::vector<std::uint8_t>& bytes_;
  int used_ = 0;
};

bool bit_at(std::span<const std::uint8_t> bytes, index_t bit) {
  return (bytes[bit / 8] >> (bit % 8) & 1) != 0;
}

// The segment of `item`, checked: its length in bits is `bits`, and its padding is 0.
std::span<const std::uint8_t> item_segment(const char* name, std::span<const std::uint8_t> bytes,
                                           std::span<const std::int32_t> indptr, int item,
                                           index_t bits) {
  const index_t begin = indptr[item], end = indptr[item + 1], wanted = (bits + 7) / 8;
  FO_CHECK(begin >= 0 && end - begin == wanted && end <= static_cast<index_t>(bytes.size()),
           "import_official: %s of item %d is bytes [%lld, %lld) of %zu, expected %lld bytes", name,
           item, static_cast<long long>(begin), static_cast<long long>(end), bytes.size(),
           static_cast<long long>(wanted));
  const auto segment = bytes.subspan(begin, wanted);
  for (index_t bit = bits; bit < wanted * 8; ++bit) {
    FO_CHECK(!bit_at(segment, bit), "import_official: padding bit %lld of %s of item %d is set",
             static_cast<long long>(bit), name, item);
  }
  return segment;
}

}  // namespace

OfficialSymbols export_official(const SparseSymbols& symbols) {
  OfficialSymbols official;
  official.cache_indptr.push_back(0);
  official.skip_indptr.push_back(0);
  for (int item = 0; item < symbols.q_grid().batch(); ++item) {
    const int q_blocks = own_blocks(symbols.q_grid(), item);
    const int kv_blocks = own_blocks(symbols.kv_grid(), item);
    BitWriter cache(official.cache), skip(official.skip);
    for (int q = 0; q < q_blocks; ++q) {
      for (int head = 0; head < symbols.num_heads(); ++head) {
        cache.push(symbols.is_live(item, head, q));
        for (int kv = 0; kv < kv_blocks; ++kv) skip.push(symbols.is_used(item, head, q, kv));
      }
    }
    official.cache_indptr.push_back(static_cast<std::int32_t>(official.cache.size()));
    official.skip_indptr.push_back(static_cast<std::int32_t>(official.skip.size()));
  }
  return official;
}

SparseSymbols import_official(BlockGrid q_grid, BlockGrid kv_grid, int num_heads,
                              const OfficialSymbols& bytes) {
  SparseSymbols symbols(std::move(q_grid), std::move(kv_grid), num_heads);
  const int batch = symbols.q_grid().batch();
  FO_CHECK(bytes.cache_indptr.size() == static_cast<std::size_t>(batch) + 1 &&
               bytes.skip_indptr.size() == static_cast<std::size_t>(batch) + 1,
           "import_official: the indptrs have %zu and %zu entries, expected %d",
           bytes.cache_indptr.size(), bytes.skip_indptr.size(), batch + 1);
  std::vector<std::uint8_t> used(symbols.kv_grid().num_blocks());
  for (int item = 0; item < batch; ++item) {
    const int q_blocks = own_blocks(symbols.q_grid(), item);
    const int kv_blocks = own_blocks(symbols.kv_grid(), item);
    const index_t rows = static_cast<index_t>(q_blocks) * num_heads;
    const auto cache = item_segment("cache", bytes.cache, bytes.cache_indptr, item, rows);
    const auto skip = item_segment("skip", bytes.skip, bytes.skip_indptr, item, rows * kv_blocks);
    for (index_t row = 0; row < rows; ++row) {
      const int q = static_cast<int>(row / num_heads), head = static_cast<int>(row % num_heads);
      for (int kv = 0; kv < kv_blocks; ++kv) used[kv] = bit_at(skip, row * kv_blocks + kv);
      symbols.set_skip_row(item, head, q, used);
      if (!bit_at(cache, row)) symbols.cache(item, head, q);
    }
  }
  return symbols;
}

}  // namespace flashomni
