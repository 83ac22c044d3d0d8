#include "backend/cuda/pieces.h"

#include <algorithm>

namespace flashomni::cuda {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Appends `num_parts` equal parts of an item, `tile_blocks` kv blocks a tile.
void append_parts(const AttentionPlan& plan, const AttentionItem& item, int num_parts,
                  int tile_blocks, Pieces& pieces) {
  const Block rows = plan.q_grid.at(item.batch, item.q_block);
  const std::int64_t tiles = divide_up(item.num_kv, tile_blocks);
  for (int part = 0; part < num_parts; ++part) {
    const auto begin = static_cast<std::int32_t>(tiles * part / num_parts * tile_blocks);
    const auto end = std::min(
        item.num_kv, static_cast<std::int32_t>(tiles * (part + 1) / num_parts * tile_blocks));
    int last_tokens = 0;
    if (end > begin) {
      last_tokens = plan.kv_grid.at(item.batch, plan.kv_blocks[item.first_kv + end - 1]).count;
    }
    pieces.list.push_back({item.batch, item.head, rows.start, rows.count, item.first_kv + begin,
                           end - begin, last_tokens, static_cast<std::int16_t>(part),
                           static_cast<std::int16_t>(num_parts),
                           num_parts > 1 ? pieces.num_slots : 0});
  }
  if (num_parts > 1) pieces.num_slots += num_parts;
}

}  // namespace

void cut_into_pieces(const AttentionPlan& plan, const CutOptions& options, Pieces& pieces) {
  pieces.list.clear();
  pieces.num_slots = 0;
  const int tile_blocks = std::max(1, kAttentionTileKv / plan.kv_grid.block());
  const int block_tiles = std::max(1, plan.kv_grid.block() / kAttentionTileKv);
  const auto tiles_of = [&](const AttentionItem& item) {
    return divide_up(item.num_kv, tile_blocks) * block_tiles;
  };
  const double items_per_sm = static_cast<double>(plan.items.size()) / options.num_sms;
  const int most_parts = items_per_sm > options.most_items_per_sm ? 1 : options.most_parts;
  std::int64_t remaining = 0;
  for (const AttentionItem& item : plan.items) remaining += tiles_of(item);
  for (const AttentionItem& item : plan.items) {
    const std::int64_t tiles = tiles_of(item);
    const std::int64_t share =
        std::max<std::int64_t>(options.smallest_part, divide_up(remaining, options.num_sms));
    remaining -= tiles;
    const std::int64_t parts = std::min<std::int64_t>(
        {divide_up(tiles, share), most_parts, divide_up(item.num_kv, tile_blocks)});
    append_parts(plan, item, static_cast<int>(std::max<std::int64_t>(parts, 1)), tile_blocks,
                 pieces);
  }
}

}  // namespace flashomni::cuda
