#include <algorithm>
#include <utility>

#include "flashomni/symbols.h"

#include "core/check.h"

namespace flashomni {

std::vector<Segment> make_segments(int seq_len, int text_tokens, TextPosition position) {
  FO_CHECK(seq_len >= 0, "make_segments: seq_len is %d, must not be negative", seq_len);
  FO_CHECK(text_tokens >= 0 && text_tokens <= seq_len,
           "make_segments: text_tokens is %d, must be between 0 and seq_len %d", text_tokens,
           seq_len);
  FO_CHECK(position != TextPosition::kNone || text_tokens == 0,
           "make_segments: %d text tokens without a position, expected first or last", text_tokens);
  const Segment text{SegmentKind::kText, text_tokens};
  const Segment image{SegmentKind::kImage, seq_len - text_tokens};
  if (text_tokens == 0) return {image};
  if (image.num_tokens == 0) return {text};
  if (position == TextPosition::kFirst) return {text, image};
  return {image, text};
}

namespace {

// The blocks of one item, all of its tokens valid.
struct ItemBlocks {
  std::vector<Block> blocks;
  std::vector<std::uint8_t> is_text;
  int num_tokens = 0;
};

ItemBlocks cut_segments(int block, std::span<const Segment> segments) {
  ItemBlocks item;
  for (const Segment& segment : segments) {
    FO_CHECK(segment.num_tokens >= 0, "BlockGrid: a segment has %d tokens, must not be negative",
             segment.num_tokens);
    for (int done = 0; done < segment.num_tokens; done += block) {
      const int count = std::min(block, segment.num_tokens - done);
      item.blocks.push_back({item.num_tokens + done, count});
      item.is_text.push_back(segment.kind == SegmentKind::kText);
    }
    item.num_tokens += segment.num_tokens;
  }
  return item;
}

}  // namespace

BlockGrid::BlockGrid(int block, int batch, std::span<const Segment> segments,
                     std::span<const int> lengths)
    : block_(block), batch_(batch) {
  FO_CHECK(block >= 1, "BlockGrid: block is %d, must be at least 1", block);
  FO_CHECK(batch >= 1, "BlockGrid: batch is %d, must be at least 1", batch);
  FO_CHECK(lengths.empty() || lengths.size() == static_cast<std::size_t>(batch),
           "BlockGrid: %zu lengths for a batch of %d", lengths.size(), batch);
  const ItemBlocks full = cut_segments(block, segments);
  num_blocks_ = static_cast<int>(full.blocks.size());
  num_tokens_ = full.num_tokens;
  for (int item = 0; item < batch; ++item) {
    const int length = lengths.empty() ? num_tokens_ : lengths[item];
    FO_CHECK(length >= 0 && length <= num_tokens_,
             "BlockGrid: the length of item %d is %d, must be between 0 and %d", item, length,
             num_tokens_);
    lengths_.push_back(length);
    for (Block valid : full.blocks) {
      valid.count = std::clamp(length - valid.start, 0, valid.count);
      blocks_.push_back(valid);
    }
    is_text_.insert(is_text_.end(), full.is_text.begin(), full.is_text.end());
  }
}

BlockGrid::BlockGrid(int block, std::span<const std::vector<Segment>> segments_of_item)
    : block_(block), batch_(static_cast<int>(segments_of_item.size())) {
  FO_CHECK(block >= 1, "BlockGrid: block is %d, must be at least 1", block);
  FO_CHECK(batch_ >= 1, "BlockGrid: batch is %d, must be at least 1", batch_);
  std::vector<ItemBlocks> items;
  for (const std::vector<Segment>& segments : segments_of_item) {
    items.push_back(cut_segments(block, segments));
    lengths_.push_back(items.back().num_tokens);
    num_blocks_ = std::max(num_blocks_, static_cast<int>(items.back().blocks.size()));
    num_tokens_ = std::max(num_tokens_, items.back().num_tokens);
  }
  for (ItemBlocks& item : items) {
    item.blocks.resize(num_blocks_, Block{item.num_tokens, 0});
    item.is_text.resize(num_blocks_, 0);
    blocks_.insert(blocks_.end(), item.blocks.begin(), item.blocks.end());
    is_text_.insert(is_text_.end(), item.is_text.begin(), item.is_text.end());
  }
}

bool BlockGrid::has_text(int item) const {
  for (int index = 0; index < num_blocks_; ++index) {
    if (is_text(item, index) && at(item, index).count > 0) return true;
  }
  return false;
}

int BlockGrid::block_starting_at(int token) const {
  if (token == num_tokens_) return num_blocks_;
  FO_CHECK(token >= 0 && token < num_tokens_,
           "BlockGrid: token %d is outside of a sequence of %d tokens", token, num_tokens_);
  // The longest item knows the index; the others must agree unless they ended before.
  const auto longest = std::max_element(lengths_.begin(), lengths_.end()) - lengths_.begin();
  int index = 0;
  while (at(static_cast<int>(longest), index).start < token) ++index;
  for (int item = 0; item < batch_; ++item) {
    const bool ended = length(item) <= token && at(item, index).count == 0;
    FO_CHECK(at(item, index).start == token || ended,
             "BlockGrid: no block of item %d starts at token %d", item, token);
  }
  return index;
}

}  // namespace flashomni
