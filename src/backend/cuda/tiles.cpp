#include "backend/cuda/tiles.h"

#include <algorithm>

namespace flashomni::cuda {
namespace {

// Tiles of the last, unfinished round that are better halved.
int count_halved(int num_tiles, int others, int num_clusters) {
  const int rest = num_tiles % num_clusters;
  return 2 * rest + others <= num_clusters ? rest : 0;
}

GemmTile tile_of(const GemmPlan& plan, std::size_t row_block, int column) {
  const RowBlock& block = plan.row_blocks[row_block];
  return {block.batch,
          block.row,
          block.num_rows,
          column,
          kWideTile,
          static_cast<std::int32_t>(row_block) * plan.num_heads,
          static_cast<std::int16_t>(block.num_cached),
          static_cast<std::int16_t>(plan.num_heads - block.num_cached),
          block.q_block,
          block.same_as_previous};
}

// Of up to four row blocks, one a thread block first.
HeadTile make_head_tile(int head, const std::vector<RowRange>& rows, std::size_t first) {
  HeadTile tile{head, {}};
  const std::size_t count = std::min<std::size_t>(4, rows.size() - first);
  const bool is_small = count <= 2;
  for (std::size_t i = 0; i < count; ++i) tile.rows[is_small ? 2 * i : i] = rows[first + i];
  return tile;
}

}  // namespace

int count_wide_tiles(int num_tiles, int num_clusters) {
  return num_tiles - count_halved(num_tiles, 0, num_clusters);
}

std::vector<GemmTile> make_column_tiles(const GemmPlan& plan, int out_features) {
  std::vector<GemmTile> tiles;
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    for (int column = 0; column < out_features; column += 2 * kWideTile) {
      tiles.push_back(tile_of(plan, i, column));
    }
  }
  std::ranges::stable_sort(tiles, std::greater{}, &GemmTile::num_live);
  return tiles;
}

void halve_last_tiles(int out_features, int num_clusters, std::vector<GemmTile>& tiles) {
  const auto num_tiles = static_cast<int>(tiles.size());
  const std::vector<GemmTile> last(tiles.begin() + count_wide_tiles(num_tiles, num_clusters),
                                   tiles.end());
  tiles.resize(tiles.size() - last.size());
  for (GemmTile tile : last) {
    tile.width = kWideTile / 2;
    tiles.push_back(tile);
    tile.column += kWideTile;
    if (tile.column < out_features) tiles.push_back(tile);
  }
}

std::vector<GemmTile> make_row_tiles(const GemmPlan& plan, int heads_per_tile) {
  std::vector<GemmTile> tiles;
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    GemmTile tile = tile_of(plan, i, 0);
    tile.first_head += tile.num_cached;
    for (int left = tile.num_live; left > 0; left -= heads_per_tile) {
      tile.num_cached = 0;
      tile.num_live = static_cast<std::int16_t>(std::min(left, heads_per_tile));
      tiles.push_back(tile);
      tile.first_head += heads_per_tile;
    }
  }
  return tiles;
}

std::vector<HeadTile> make_head_tiles(const GemmPlan& plan, int num_clusters) {
  std::vector<HeadTile> tiles, small;
  std::vector<std::vector<RowRange>> waiting(plan.num_heads);
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    const RowBlock& block = plan.row_blocks[i];
    for (const int head : plan.live_heads(i)) {
      waiting[head].push_back({block.batch, block.row, block.num_rows});
      if (waiting[head].size() < 4) continue;
      tiles.push_back(make_head_tile(head, waiting[head], 0));
      waiting[head].clear();
    }
  }
  for (int head = 0; head < plan.num_heads; ++head) {
    if (waiting[head].empty()) continue;
    (waiting[head].size() > 2 ? tiles : small).push_back(make_head_tile(head, waiting[head], 0));
  }
  const int halved =
      count_halved(static_cast<int>(tiles.size()), static_cast<int>(small.size()), num_clusters);
  const std::vector<HeadTile> last(tiles.end() - halved, tiles.end());
  tiles.resize(tiles.size() - halved);
  for (const HeadTile& tile : last) {
    std::vector<RowRange> rows(std::begin(tile.rows), std::end(tile.rows));
    std::erase_if(rows, [](const RowRange& range) { return range.num_rows == 0; });
    const std::vector<RowRange> first(rows.begin(), rows.begin() + 2);
    tiles.push_back(make_head_tile(tile.head, first, 0));
    tiles.push_back(make_head_tile(tile.head, rows, 2));
  }
  tiles.insert(tiles.end(), small.begin(), small.end());
  return tiles;
}

}  // namespace flashomni::cuda
