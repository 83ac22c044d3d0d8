// symbols.h -- the sparse symbols: what a policy decides for one attention layer.
//
//   cache  one bit per (head, q block):            1 = compute, 0 = reuse the cached result
//   skip   one bit per (head, q block, kv block):  1 = use,     0 = leave out of the softmax
//
// Source: arXiv:2509.25401 (S_c, S_s). Layout: docs/symbols.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashomni/tensor.h"  // ConstTensorView

namespace flashomni {

enum class SegmentKind : std::uint8_t { kImage, kText };

// A run of tokens of one kind. A joint sequence is a list of segments in token order.
struct Segment {
  SegmentKind kind = SegmentKind::kImage;
  int num_tokens = 0;
  bool operator==(const Segment&) const = default;
};

// Where the text tokens of a joint sequence stand. FLUX: first; HunyuanVideo, SD3: last.
enum class TextPosition { kNone, kFirst, kLast };

// The segments of a sequence with `text_tokens` of its `seq_len` tokens at `position`.
// Throws kInvalidArgument unless 0 <= text_tokens <= seq_len and (kNone => text_tokens == 0).
std::vector<Segment> make_segments(int seq_len, int text_tokens, TextPosition position);

// Tokens [start, start + count) of one batch item. count is 0 for blocks past the item's length.
struct Block {
  int start = 0;
  int count = 0;
  bool operator==(const Block&) const = default;
};

// One token axis cut into blocks of at most `block` tokens. Blocks restart at every segment, so
// none straddles a text/image border; the last of a segment may be short.
class BlockGrid {
 public:
  BlockGrid() = default;
  // Every item has the same segments. `lengths` [batch] (empty: all full) says how many leading
  // tokens of an item are valid; blocks past it keep their index and have count 0.
  // Throws kInvalidArgument for block < 1, batch < 1, a negative segment or a length out of range.
  BlockGrid(int block, int batch, std::span<const Segment> segments,
            std::span<const int> lengths = {});
  // Items with segments of their own (ragged batches). Grids are padded to the longest item.
  BlockGrid(int block, std::span<const std::vector<Segment>> segments_of_item);

  int block() const { return block_; }
  int batch() const { return batch_; }
  int num_blocks() const { return num_blocks_; }  // maximum over the items
  int num_tokens() const { return num_tokens_; }  // maximum over the items, invalid ones included
  Block at(int item, int index) const { return blocks_[item * num_blocks_ + index]; }
  bool is_text(int item, int index) const { return is_text_[item * num_blocks_ + index] != 0; }
  int length(int item) const { return lengths_[item]; }  // valid tokens
  bool has_text(int item) const;
  // The block that starts at token `token` of every item. Throws kInvalidArgument if none does.
  int block_starting_at(int token) const;
  bool operator==(const BlockGrid&) const = default;

 private:
  int block_ = 0, batch_ = 0, num_blocks_ = 0, num_tokens_ = 0;
  std::vector<Block> blocks_;          // [batch, num_blocks]
  std::vector<std::uint8_t> is_text_;  // [batch, num_blocks]
  std::vector<int> lengths_;           // [batch]
};

// What the symbols of a layer leave to do. Pairs are (query token, key token) pairs of valid
// tokens, summed over heads.
struct SymbolStats {
  std::int64_t q_blocks = 0, live_q_blocks = 0;        // (item, head, q block) with valid tokens
  std::int64_t block_pairs = 0, live_block_pairs = 0;  // (item, head, q block, kv block)
  std::int64_t pairs = 0, live_pairs = 0;              // in tokens
  std::int64_t pairs_in_live_rows = 0;                 // pairs of live q blocks, used or not

  double live_fraction() const;     // live q blocks over all q blocks (S_q is compared with it)
  double cached_fraction() const;   // pairs of cached q blocks over all pairs
  double skipped_fraction() const;  // pairs left out in live q blocks over all pairs of live ones
  double density() const;           // live pairs over all pairs; attention sparsity = 1 - density
};

// The symbols of one layer, for every item and head. Bit 1 = compute / use.
//   cache word w of (item, q_block):       heads   32 w .. 32 w + 31, bit = head & 31
//   skip  word w of (item, head, q_block): kv blocks 32 w ..,         bit = kv_block & 31
// Canonical: bits past num_heads / num_blocks, and of blocks with no valid token, are 0; the skip
// row of a cached q block is 0. A live q block may have an empty skip row (out = 0, lse = -inf).
class SparseSymbols {
 public:
  SparseSymbols() = default;
  // All live. Throws kInvalidArgument if the grids disagree on batch or num_heads < 1.
  SparseSymbols(BlockGrid q_grid, BlockGrid kv_grid, int num_heads);

  // From dense masks of 0 and 1 (host memory, u8, contiguous), made canonical:
  //   cache [batch, num_heads, q_blocks] or {} = all 1
  //   skip  [batch, num_heads, q_blocks, kv_blocks] or {} = all 1
  // Throws kInvalidArgument on another shape or dtype, or a value other than 0 or 1.
  static SparseSymbols from_masks(BlockGrid q_grid, BlockGrid kv_grid, int num_heads,
                                  ConstTensorView cache, ConstTensorView skip);
  void to_masks(std::span<std::uint8_t> cache, std::span<std::uint8_t> skip) const;

  const BlockGrid& q_grid() const { return q_grid_; }
  const BlockGrid& kv_grid() const { return kv_grid_; }
  int num_heads() const { return num_heads_; }
  int head_words() const { return head_words_; }  // words per cache row, ceil(num_heads / 32)
  int kv_words() const { return kv_words_; }      // words per skip row,  ceil(kv_blocks / 32)

  bool is_live(int item, int head, int q_block) const;
  bool is_used(int item, int head, int q_block, int kv_block) const;
  std::span<const std::uint32_t> cache_row(int item, int q_block) const;
  std::span<const std::uint32_t> skip_row(int item, int head, int q_block) const;

  // Editing keeps the symbols canonical: caching a q block clears its skip row, and
  // `set_skip_row` of a cached q block changes nothing.
  void set_all_live();
  void cache(int item, int head, int q_block);
  void skip(int item, int head, int q_block, int kv_block);
  void set_skip_row(int item, int head, int q_block, std::span<const std::uint8_t> used);

  // Raw words, [batch, q_blocks, head_words] and [batch, num_heads, q_blocks, kv_words].
  // `import_words` throws kInvalidArgument naming the first word that is not canonical.
  std::span<const std::uint32_t> cache_words() const { return cache_words_; }
  std::span<const std::uint32_t> skip_words() const { return skip_words_; }
  void import_words(std::span<const std::uint32_t> cache, std::span<const std::uint32_t> skip);

  SymbolStats stats() const;
  bool operator==(const SparseSymbols&) const = default;

 private:
  BlockGrid q_grid_, kv_grid_;
  int num_heads_ = 0, head_words_ = 0, kv_words_ = 0;
  std::vector<std::uint32_t> cache_words_, skip_words_;
};

// The byte format of the published FlashOmni code (docs/symbols.md): per item a byte-aligned
// segment; bit index q_block * num_heads + head for cache, times kv_blocks plus kv_block for skip.
struct OfficialSymbols {
  std::vector<std::uint8_t> cache, skip;
  std::vector<std::int32_t> cache_indptr, skip_indptr;  // byte offsets, [batch + 1]
};
OfficialSymbols export_official(const SparseSymbols& symbols);
// Throws kInvalidArgument if an indptr does not fit the grids or a padding bit is set.
SparseSymbols import_official(BlockGrid q_grid, BlockGrid kv_grid, int num_heads,
                              const OfficialSymbols& bytes);

}  // namespace flashomni
