#include "backend/cuda/tiles.h"

#include <algorithm>
#include <span>

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
          block.same_as_previous,
          0};
}

RowRange range_of(const RowBlock& block) { return {block.batch, block.row, block.num_rows}; }

// Up to four row blocks, and up to two.
HeadTile whole_tile(int head, std::span<const RowRange> rows) {
  HeadTile tile{head, 0, {}, 0};
  std::ranges::copy(rows, tile.rows);
  return tile;
}
HeadTile tile_in_halves(int head, const RowRange& first, const RowRange& second) {
  return {head, 1, {first, second, first, second}, 0};
}

// Appends the row blocks of `tile` in tiles of `rows_per_tile`, 4, 2 or 1.
void add_cut(const HeadTile& tile, int rows_per_tile, std::vector<HeadTile>& tiles) {
  if (rows_per_tile == 4) return tiles.push_back(tile);
  const int num_rows = tile.in_halves ? 2 : 4;
  for (int i = 0; i < num_rows && tile.rows[i].num_rows > 0; i += rows_per_tile) {
    const RowRange second = rows_per_tile == 2 ? tile.rows[i + 1] : RowRange{};
    tiles.push_back(tile_in_halves(tile.head, tile.rows[i], second));
  }
}

// The tiles of make_head_tiles() before the last round is looked at.
struct HeadTiles {
  std::vector<HeadTile> whole, left;
};

HeadTiles gather_heads(const GemmPlan& plan) {
  HeadTiles tiles;
  std::vector<std::vector<RowRange>> waiting(plan.num_heads);
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    for (const int head : plan.live_heads(i)) {
      std::vector<RowRange>& rows = waiting[head];
      rows.push_back(range_of(plan.row_blocks[i]));
      if (rows.size() < 4) continue;
      tiles.whole.push_back(whole_tile(head, rows));
      rows.clear();
    }
  }
  for (int head = 0; head < plan.num_heads; ++head) {
    std::vector<RowRange>& rows = waiting[head];
    if (rows.size() == 3) {
      tiles.whole.push_back(whole_tile(head, rows));
    } else if (!rows.empty()) {
      rows.resize(2);
      tiles.left.push_back(tile_in_halves(head, rows[0], rows[1]));
    }
  }
  return tiles;
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
  auto [tiles, left] = gather_heads(plan);
  const auto rest = static_cast<std::ptrdiff_t>(tiles.size()) % num_clusters;
  const std::vector<HeadTile> last(tiles.end() - rest, tiles.end());
  tiles.resize(tiles.size() - last.size());
  const auto count = [](const std::vector<HeadTile>& whole, int rows_per_tile) {
    std::vector<HeadTile> cut;
    for (const HeadTile& tile : whole) add_cut(tile, rows_per_tile, cut);
    return static_cast<int>(cut.size());
  };
  const LastRound cut = cut_last_round(
      {{count(last, 4), count(last, 2), count(last, 1)}, {0, count(left, 2), count(left, 1)}},
      num_clusters);
  for (const HeadTile& tile : last) add_cut(tile, cut.rest_rows, tiles);
  for (const HeadTile& tile : left) add_cut(tile, cut.left_rows, tiles);
  return tiles;
}

}  // namespace flashomni::cuda
