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

// Up to four row blocks of a head.
struct HeadRows {
  int head = 0, count = 0;
  RowRange rows[4] = {};
};

// Appends them in tiles of `rows_per_tile`, 4, 2 or 1.
void add_tiles(const HeadRows& from, int rows_per_tile, std::vector<HeadTile>& tiles) {
  const auto& [head, count, rows] = from;
  if (rows_per_tile == 4 && count > 2) {
    tiles.push_back({head, 0, {rows[0], rows[1], rows[2], rows[3]}, 0});
  } else if (rows_per_tile == 4) {
    tiles.push_back({head, 0, {rows[0], {}, rows[1], {}}, 0});  // one a thread block
  } else {
    for (int i = 0; i < count; i += rows_per_tile) {
      const RowRange second = rows_per_tile == 2 ? rows[i + 1] : RowRange{};
      tiles.push_back({head, 1, {rows[i], second, rows[i], second}, 0});
    }
  }
}

int count_tiles(std::span<const HeadRows> all, int rows_per_tile) {
  std::vector<HeadTile> tiles;
  for (const HeadRows& rows : all) add_tiles(rows, rows_per_tile, tiles);
  return static_cast<int>(tiles.size());
}

// Rows of three or four row blocks, in the order of their last, and what is left of each head.
struct GatheredHeads {
  std::vector<HeadRows> whole, left;
};

GatheredHeads gather_heads(const GemmPlan& plan) {
  GatheredHeads gathered;
  std::vector<HeadRows> waiting(plan.num_heads);
  for (std::size_t i = 0; i < plan.row_blocks.size(); ++i) {
    const RowBlock& block = plan.row_blocks[i];
    for (const int head : plan.live_heads(i)) {
      HeadRows& rows = waiting[head];
      rows.head = head;
      rows.rows[rows.count++] = {block.batch, block.row, block.num_rows};
      if (rows.count < 4) continue;
      gathered.whole.push_back(rows);
      rows = {};
    }
  }
  for (const HeadRows& rows : waiting) {
    if (rows.count > 0) (rows.count == 3 ? gathered.whole : gathered.left).push_back(rows);
  }
  return gathered;
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
  const auto [whole, left] = gather_heads(plan);
  const std::size_t in_full_rounds = whole.size() - whole.size() % num_clusters;
  const auto full = std::span(whole).first(in_full_rounds);
  const auto rest = std::span(whole).subspan(in_full_rounds);
  LastRoundTiles last;
  for (int kind = 0; kind < 3; ++kind) {
    last.rest[kind] = count_tiles(rest, 4 >> kind);
    last.left[kind] = count_tiles(left, 4 >> kind);
  }
  const LastRound cut = cut_last_round(last, num_clusters);
  std::vector<HeadTile> tiles;
  for (const HeadRows& rows : full) add_tiles(rows, 4, tiles);
  for (const HeadRows& rows : rest) add_tiles(rows, cut.rest_rows, tiles);
  for (const HeadRows& rows : left) add_tiles(rows, cut.left_rows, tiles);
  return tiles;
}

}  // namespace flashomni::cuda
