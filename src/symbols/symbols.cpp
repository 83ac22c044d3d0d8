#include "flashomni/symbols.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "symbols/layout.h"

namespace flashomni {
namespace {

double fraction(std::int64_t part, std::int64_t whole, double of_nothing) {
  return whole == 0 ? of_nothing : static_cast<double>(part) / static_cast<double>(whole);
}

// A mask argument of from_masks: u8 in host memory, of the wanted shape, only zeros and ones.
void check_mask(const char* name, ConstTensorView mask, Layout wanted) {
  FO_CHECK(mask.dtype == DType::kU8, "from_masks: %s is %s, expected u8", name,
           std::string(dtype_name(mask.dtype)).c_str());
  FO_CHECK(mask.device.type == DeviceType::kCpu, "from_masks: %s must be in host memory", name);
  FO_CHECK(mask.layout.rank == wanted.rank && mask.layout.sizes == wanted.sizes,
           "from_masks: %s is %s, expected %s", name, mask.layout.to_string().c_str(),
           wanted.to_string().c_str());
  FO_CHECK(mask.layout.is_contiguous(), "from_masks: %s must be contiguous", name);
  const std::uint8_t* values = mask.as<std::uint8_t>();
  for (index_t i = 0; i < wanted.num_elements(); ++i) {
    FO_CHECK(values[i] <= 1, "from_masks: %s holds %d at element %lld, expected 0 or 1", name,
             values[i], static_cast<long long>(i));
  }
}

void check_words(const char* name, std::span<const std::uint32_t> given,
                 std::span<const std::uint32_t> allowed) {
  for (std::size_t w = 0; w < given.size(); ++w) {
    FO_CHECK((given[w] & ~allowed[w]) == 0,
             "import_words: %s word %zu is 0x%08x, bits 0x%08x must be 0", name, w, given[w],
             given[w] & ~allowed[w]);
  }
}

}  // namespace

double SymbolStats::live_fraction() const { return fraction(live_q_blocks, q_blocks, 1); }
double SymbolStats::cached_fraction() const {
  return fraction(pairs - pairs_in_live_rows, pairs, 0);
}
double SymbolStats::skipped_fraction() const {
  return fraction(pairs_in_live_rows - live_pairs, pairs_in_live_rows, 0);
}
double SymbolStats::density() const { return fraction(live_pairs, pairs, 1); }

SparseSymbols::SparseSymbols(BlockGrid q_grid, BlockGrid kv_grid, int num_heads)
    : q_grid_(std::move(q_grid)),
      kv_grid_(std::move(kv_grid)),
      num_heads_(num_heads),
      head_words_(words_for(num_heads)),
      kv_words_(words_for(kv_grid_.num_blocks())) {
  FO_CHECK(num_heads >= 1, "SparseSymbols: num_heads is %d, must be at least 1", num_heads);
  FO_CHECK(q_grid_.batch() == kv_grid_.batch(),
           "SparseSymbols: the kv grid has a batch of %d, the q grid of %d", kv_grid_.batch(),
           q_grid_.batch());
  const std::size_t rows = static_cast<std::size_t>(q_grid_.batch()) * q_grid_.num_blocks();
  cache_words_.resize(rows * head_words_);
  skip_words_.resize(rows * num_heads_ * kv_words_);
  set_all_live();
}

void SparseSymbols::set_all_live() {
  std::fill(cache_words_.begin(), cache_words_.end(), 0);
  std::fill(skip_words_.begin(), skip_words_.end(), 0);
  std::vector<std::uint32_t> all_kv(kv_words_);
  for (int item = 0; item < q_grid_.batch(); ++item) {
    std::fill(all_kv.begin(), all_kv.end(), 0);
    for (int kv = 0; kv < kv_grid_.num_blocks(); ++kv) {
      if (kv_grid_.at(item, kv).count > 0) all_kv[word_of(kv)] |= mask_of(kv);
    }
    for (int head = 0; head < num_heads_; ++head) {
      for (int q = 0; q < q_grid_.num_blocks(); ++q) {
        if (q_grid_.at(item, q).count == 0) continue;
        cache_words_[cache_row_offset(item, q, q_grid_.num_blocks(), head_words_) +
                     word_of(head)] |= mask_of(head);
        std::copy(all_kv.begin(), all_kv.end(),
                  skip_words_.begin() +
                      skip_row_offset(item, head, q, num_heads_, q_grid_.num_blocks(), kv_words_));
      }
    }
  }
}

SparseSymbols SparseSymbols::from_masks(BlockGrid q_grid, BlockGrid kv_grid, int num_heads,
                                        ConstTensorView cache, ConstTensorView skip) {
  SparseSymbols symbols(std::move(q_grid), std::move(kv_grid), num_heads);
  const index_t batch = symbols.q_grid_.batch();
  const int q_blocks = symbols.q_grid_.num_blocks(), kv_blocks = symbols.kv_grid_.num_blocks();
  if (cache) check_mask("cache", cache, {batch, num_heads, q_blocks});
  if (skip) check_mask("skip", skip, {batch, num_heads, q_blocks, kv_blocks});

  for (int item = 0; item < batch; ++item) {
    for (int head = 0; head < num_heads; ++head) {
      for (int q = 0; q < q_blocks; ++q) {
        const index_t row = (static_cast<index_t>(item) * num_heads + head) * q_blocks + q;
        if (cache && !cache.as<std::uint8_t>()[row]) symbols.cache(item, head, q);
        if (!skip) continue;
        symbols.set_skip_row(
            item, head, q,
            {skip.as<std::uint8_t>() + row * kv_blocks, static_cast<std::size_t>(kv_blocks)});
      }
    }
  }
  return symbols;
}

void SparseSymbols::to_masks(std::span<std::uint8_t> cache, std::span<std::uint8_t> skip) const {
  const int batch = q_grid_.batch(), q_blocks = q_grid_.num_blocks();
  const int kv_blocks = kv_grid_.num_blocks();
  const std::size_t rows = static_cast<std::size_t>(batch) * num_heads_ * q_blocks;
  FO_CHECK(cache.size() == rows && skip.size() == rows * kv_blocks,
           "to_masks: cache has %zu and skip %zu elements, expected %zu and %zu", cache.size(),
           skip.size(), rows, rows * kv_blocks);
  std::size_t row = 0;
  for (int item = 0; item < batch; ++item) {
    for (int head = 0; head < num_heads_; ++head) {
      for (int q = 0; q < q_blocks; ++q, ++row) {
        cache[row] = is_live(item, head, q);
        for (int kv = 0; kv < kv_blocks; ++kv) {
          skip[row * kv_blocks + kv] = is_used(item, head, q, kv);
        }
      }
    }
  }
}

std::span<const std::uint32_t> SparseSymbols::cache_row(int item, int q_block) const {
  return {cache_words_.data() + cache_row_offset(item, q_block, q_grid_.num_blocks(), head_words_),
          static_cast<std::size_t>(head_words_)};
}

std::span<const std::uint32_t> SparseSymbols::skip_row(int item, int head, int q_block) const {
  return {skip_words_.data() +
              skip_row_offset(item, head, q_block, num_heads_, q_grid_.num_blocks(), kv_words_),
          static_cast<std::size_t>(kv_words_)};
}

bool SparseSymbols::is_live(int item, int head, int q_block) const {
  return test_bit(cache_row(item, q_block), head);
}

bool SparseSymbols::is_used(int item, int head, int q_block, int kv_block) const {
  return test_bit(skip_row(item, head, q_block), kv_block);
}

void SparseSymbols::cache(int item, int head, int q_block) {
  cache_words_[cache_row_offset(item, q_block, q_grid_.num_blocks(), head_words_) +
               word_of(head)] &= ~mask_of(head);
  std::fill_n(skip_words_.begin() +
                  skip_row_offset(item, head, q_block, num_heads_, q_grid_.num_blocks(), kv_words_),
              kv_words_, 0);
}

void SparseSymbols::skip(int item, int head, int q_block, int kv_block) {
  skip_words_[skip_row_offset(item, head, q_block, num_heads_, q_grid_.num_blocks(), kv_words_) +
              word_of(kv_block)] &= ~mask_of(kv_block);
}

void SparseSymbols::set_skip_row(int item, int head, int q_block,
                                 std::span<const std::uint8_t> used) {
  FO_ASSERT(used.size() == static_cast<std::size_t>(kv_grid_.num_blocks()));
  if (!is_live(item, head, q_block)) return;
  std::uint32_t* row = skip_words_.data() + skip_row_offset(item, head, q_block, num_heads_,
                                                            q_grid_.num_blocks(), kv_words_);
  std::fill_n(row, kv_words_, 0);
  for (int kv = 0; kv < kv_grid_.num_blocks(); ++kv) {
    if (used[kv] && kv_grid_.at(item, kv).count > 0) row[word_of(kv)] |= mask_of(kv);
  }
}

void SparseSymbols::import_words(std::span<const std::uint32_t> cache,
                                 std::span<const std::uint32_t> skip) {
  FO_CHECK(cache.size() == cache_words_.size() && skip.size() == skip_words_.size(),
           "import_words: %zu cache and %zu skip words, expected %zu and %zu", cache.size(),
           skip.size(), cache_words_.size(), skip_words_.size());
  // All live = every bit that may be set; the skip rows of what `cache` caches must then be 0.
  SparseSymbols allowed(q_grid_, kv_grid_, num_heads_);
  check_words("cache", cache, allowed.cache_words_);
  for (int item = 0; item < q_grid_.batch(); ++item) {
    for (int q = 0; q < q_grid_.num_blocks(); ++q) {
      const auto given =
          cache.subspan(cache_row_offset(item, q, q_grid_.num_blocks(), head_words_), head_words_);
      for (int head = 0; head < num_heads_; ++head) {
        if (!test_bit(given, head)) allowed.cache(item, head, q);
      }
    }
  }
  check_words("skip", skip, allowed.skip_words_);
  std::copy(cache.begin(), cache.end(), cache_words_.begin());
  std::copy(skip.begin(), skip.end(), skip_words_.begin());
}

SymbolStats SparseSymbols::stats() const {
  SymbolStats stats;
  for (int item = 0; item < q_grid_.batch(); ++item) {
    int kv_blocks = 0;
    for (int kv = 0; kv < kv_grid_.num_blocks(); ++kv) {
      kv_blocks += kv_grid_.at(item, kv).count > 0;
    }
    for (int head = 0; head < num_heads_; ++head) {
      for (int q = 0; q < q_grid_.num_blocks(); ++q) {
        const std::int64_t rows = q_grid_.at(item, q).count;
        if (rows == 0) continue;
        stats.q_blocks += 1;
        stats.block_pairs += kv_blocks;
        stats.pairs += rows * kv_grid_.length(item);
        if (!is_live(item, head, q)) continue;
        stats.live_q_blocks += 1;
        stats.pairs_in_live_rows += rows * kv_grid_.length(item);
        for_each_set_bit(skip_row(item, head, q), [&](int kv) {
          stats.live_block_pairs += 1;
          stats.live_pairs += rows * kv_grid_.at(item, kv).count;
        });
      }
    }
  }
  return stats;
}

}  // namespace flashomni
