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

// Whether `rest` head tiles and `small` ones, of two row blocks or one, take longer than the halves
// of the former and the latter. A round of small tiles takes 11 20ths of another: it reads more of
// L2 for its work.
bool better_halved(int rest, int small, int num_clusters) {
  const auto rounds = [&](int tiles) { return (tiles + num_clusters - 1) / num_clusters; };
  return 11 * rounds(2 * rest + small) < 20 * rounds(rest + small);
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

HeadTile of_one_head(int head, std::span<const RowRange> rows) {
  HeadTile tile{Sharing::kHead, {head, head}, {}, 0};
  std::ranges::copy(rows, tile.rows);
  return tile;
}
// Of at most two row blocks.
HeadTile of_two_rows(Sharing sharing, int first_head, int second_head, RowRange first,
                     RowRange second) {
  return {sharing, {first_head, second_head}, {first, second, first, second}, 0};
}

// The work of a whole tile in tiles of one head and at most two row blocks.
void add_halves(const HeadTile& tile, std::vector<HeadTile>& halves) {
  for (int i = 0; i < 4; i += 2) {
    if (tile.rows[i].num_rows == 0) continue;
    const int head = tile.heads[i / 2];
    halves.push_back(of_two_rows(Sharing::kBoth, head, head, tile.rows[i], tile.rows[i + 1]));
  }
}

RowRange range_of(const RowBlock& block) { return {block.batch, block.row, block.num_rows}; }

// The first and second, third and fourth, ... live heads of row blocks, and with which other row
// block that has the same two heads among its own they make a tile.
class HeadPairs {
 public:
  static constexpr int kNone = -1;

  explicit HeadPairs(const GemmPlan& plan)
      : pairs_per_block_(plan.num_heads / 2), partner_(plan.row_blocks.size() * pairs_per_block_) {
    std::ranges::fill(partner_, kNone);
    const auto num_heads = static_cast<std::size_t>(plan.num_heads);
    std::vector<int> waiting(num_heads * num_heads,
                             kNone);  // place of the last one without partner
    for (int block = 0; block < static_cast<int>(plan.row_blocks.size()); ++block) {
      const auto live = plan.live_heads(static_cast<std::size_t>(block));
      for (int pair = 0; pair < static_cast<int>(live.size()) / 2; ++pair) {
        const int place = block * pairs_per_block_ + pair;
        int& other = waiting[live[2 * pair] * num_heads + live[2 * pair + 1]];
        if (other == kNone || block - other / pairs_per_block_ > kPairReach) {
          other = place;
          continue;
        }
        partner_[place] = other / pairs_per_block_;
        partner_[other] = block;
        other = kNone;
      }
    }
  }
  int partner(int block, int pair) const { return partner_[block * pairs_per_block_ + pair]; }

 private:
  int pairs_per_block_;
  std::vector<int> partner_;  // [row block, pair]
};

// The tiles of make_head_tiles() before the last round is looked at.
struct HeadTiles {
  std::vector<HeadTile> whole, small;  // small: of at most two row blocks
};

HeadTiles gather_heads(const GemmPlan& plan) {
  HeadTiles tiles;
  const HeadPairs pairs(plan);
  std::vector<std::vector<RowRange>> waiting(plan.num_heads);
  const auto take = [&](int head, const RowRange& rows) {
    waiting[head].push_back(rows);
    if (waiting[head].size() < 4) return;
    tiles.whole.push_back(of_one_head(head, waiting[head]));
    waiting[head].clear();
  };
  for (int i = 0; i < static_cast<int>(plan.row_blocks.size()); ++i) {
    const RowRange rows = range_of(plan.row_blocks[i]);
    const auto live = plan.live_heads(static_cast<std::size_t>(i));
    for (int n = 0; n < static_cast<int>(live.size()); ++n) {
      const bool has_pair = n / 2 < static_cast<int>(live.size()) / 2;
      const int partner = has_pair ? pairs.partner(i, n / 2) : HeadPairs::kNone;
      if (partner == HeadPairs::kNone) {
        take(live[n], rows);
      } else if (partner < i && n % 2 == 0) {
        tiles.whole.push_back(of_two_rows(Sharing::kRows, live[n], live[n + 1],
                                          range_of(plan.row_blocks[partner]), rows));
      }
    }
  }
  for (int head = 0; head < plan.num_heads; ++head) {
    std::vector<RowRange>& rows = waiting[head];
    if (rows.size() == 3) {
      tiles.whole.push_back(of_one_head(head, rows));
    } else if (!rows.empty()) {
      rows.resize(2);
      tiles.small.push_back(of_two_rows(Sharing::kBoth, head, head, rows[0], rows[1]));
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
  auto [tiles, small] = gather_heads(plan);
  const auto rest = static_cast<std::ptrdiff_t>(tiles.size()) % num_clusters;
  const std::vector<HeadTile> last(tiles.end() - rest, tiles.end());
  tiles.resize(tiles.size() - last.size());
  const bool are_halved =
      better_halved(static_cast<int>(rest), static_cast<int>(small.size()), num_clusters);
  for (const HeadTile& tile : last) {
    if (are_halved) {
      add_halves(tile, tiles);
    } else {
      tiles.push_back(tile);
    }
  }
  tiles.insert(tiles.end(), small.begin(), small.end());
  return tiles;
}

}  // namespace flashomni::cuda
