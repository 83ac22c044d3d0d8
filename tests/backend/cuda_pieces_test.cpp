// The CUDA backend's cutting of attention items into pieces: plain C++, tested without a GPU.
#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>

#include "backend/cuda/pieces.h"
#include "flashomni/plan.h"

namespace flashomni::cuda {
namespace {

AttentionPlan dense_plan(int seq_len, int num_heads, int block_kv) {
  const std::vector<Segment> segments{{SegmentKind::kImage, seq_len}};
  AttentionPlan plan;
  build_attention_plan(
      SparseSymbols(BlockGrid(128, 1, segments), BlockGrid(block_kv, 1, segments), num_heads),
      plan);
  return plan;
}

Pieces cut(const AttentionPlan& plan, const CutOptions& options) {
  Pieces pieces;
  cut_into_pieces(plan, options, pieces);
  return pieces;
}

TEST(CudaPieces, CoverEveryItemOnce) {
  for (const int block_kv : {16, 64, 128, 256}) {
    for (const int num_sms : {1, 7, 132}) {
      const AttentionPlan plan = dense_plan(1300, 3, block_kv);
      const Pieces pieces = cut(plan, {.num_sms = num_sms, .smallest_part = 1, .most_parts = 5});
      std::map<std::tuple<int, int>, std::map<int, AttentionPiece>> parts_of;  // head, row; part
      for (const AttentionPiece& piece : pieces.list) {
        auto& parts = parts_of[std::tuple(piece.head, piece.row)];
        EXPECT_TRUE(parts.emplace(piece.part, piece).second);
      }
      EXPECT_EQ(parts_of.size(), plan.items.size());
      for (const AttentionItem& item : plan.items) {
        const auto& parts = parts_of[std::tuple(item.head, plan.q_grid.at(0, item.q_block).start)];
        std::int32_t next = item.first_kv;
        for (const auto& [number, piece] : parts) {
          EXPECT_EQ(piece.num_parts, static_cast<int>(parts.size()));
          EXPECT_LE(piece.num_parts, 5);
          EXPECT_EQ(piece.first_kv, next);
          EXPECT_GT(piece.num_kv, 0);
          next += piece.num_kv;
        }
        EXPECT_EQ(next, item.first_kv + item.num_kv);
      }
    }
  }
}

TEST(CudaPieces, PartsOfOneItemHaveSlotsOfTheirOwn) {
  const Pieces pieces =
      cut(dense_plan(4096, 2, 128), {.num_sms = 7, .smallest_part = 2, .most_parts = 16});
  std::map<int, int> users;
  for (const AttentionPiece& piece : pieces.list) {
    if (piece.num_parts > 1) ++users[piece.slot + piece.part];
  }
  EXPECT_EQ(users.size(), static_cast<std::size_t>(pieces.num_slots));
  EXPECT_GT(pieces.num_slots, 0);
  for (const auto& [slot, count] : users) EXPECT_EQ(count, 1) << "slot " << slot;
}

TEST(CudaPieces, PartialResultsHaveABound) {
  for (const int num_sms : {3, 148}) {
    const CutOptions options{.num_sms = num_sms, .smallest_part = 1};
    const Pieces pieces = cut(dense_plan(6000, 1, 256), options);
    EXPECT_GT(pieces.num_slots, 0);
    EXPECT_LE(pieces.num_slots, 2 * num_sms);
  }
}

// Tiles and pieces of every multiprocessor, weighed as the options do.
std::vector<double> loads(const Pieces& pieces, const CutOptions& options) {
  std::vector<double> loads;
  for (int sm = 0; sm < options.num_sms; ++sm) {
    loads.push_back(0);
    for (int i = pieces.first_of_sm[sm]; i < pieces.first_of_sm[sm + 1]; ++i) {
      loads.back() += pieces.list[i].num_kv + options.piece_cost;
    }
  }
  return loads;
}

TEST(CudaPieces, MultiprocessorsEndTogether) {
  for (const int heads : {1, 2, 5, 24}) {
    const CutOptions options;
    const Pieces pieces = cut(dense_plan(4608, heads, 128), options);
    EXPECT_EQ(pieces.first_of_sm.front(), 0);
    EXPECT_EQ(pieces.first_of_sm.back(), static_cast<int>(pieces.list.size()));
    double sum = 0, longest = 0;
    for (const double load : loads(pieces, options)) {
      sum += load;
      longest = std::max(longest, load);
    }
    EXPECT_LE(longest, sum / options.num_sms + options.piece_cost + options.smallest_part) << heads;
  }
}

// The same plan with rows of different lengths.
AttentionPlan uneven_plan(int seq_len, int num_heads) {
  AttentionPlan plan = dense_plan(seq_len, num_heads, 128);
  std::uint32_t random = 1;
  for (AttentionItem& item : plan.items) {
    random = random * 1664525 + 1013904223;
    item.num_kv = static_cast<int>(1 + (random >> 16) % 9);
  }
  return plan;
}

TEST(CudaPieces, ShortItemsFillTheGapsAtTheEnd) {
  const CutOptions options;
  const Pieces pieces = cut(uneven_plan(4608, 24), options);
  const std::vector<double> all = loads(pieces, options);
  const double mean = std::accumulate(all.begin(), all.end(), 0.0) / options.num_sms;
  EXPECT_LE(std::ranges::max(all), mean + 1.5);
}

TEST(CudaPieces, NoItemFallsIntoMorePartsThanAllowed) {
  // One item more than there are multiprocessors: what is left over is spread evenly.
  for (const int most : {1, 2, 8}) {
    const CutOptions options{.num_sms = 35, .most_parts = most};
    const Pieces pieces = cut(dense_plan(4608, 1, 128), options);
    int largest = 0;
    for (const AttentionPiece& piece : pieces.list) largest = std::max(largest, +piece.num_parts);
    EXPECT_EQ(largest, most);
    EXPECT_LE(std::ranges::max(loads(pieces, options)), 37 + (36 + most - 1) / most + 1) << most;
  }
}

TEST(CudaPieces, WholeItemsComeInThePlansOrder) {
  const AttentionPlan plan = uneven_plan(4608, 24);
  const Pieces pieces = cut(plan, {.sorted_per_sm = 0});
  std::map<std::tuple<int, int>, int> place;
  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    const AttentionItem& item = plan.items[i];
    place[{item.head, plan.q_grid.at(0, item.q_block).start}] = static_cast<int>(i);
  }
  int whole = 0;
  for (int sm = 0; sm < 132; ++sm) {
    int last = -1;
    for (int i = pieces.first_of_sm[sm]; i < pieces.first_of_sm[sm + 1]; ++i) {
      const AttentionPiece& piece = pieces.list[i];
      if (piece.num_parts > 1) continue;
      ++whole;
      EXPECT_LT(last, place.at({piece.head, piece.row}));
      last = place.at({piece.head, piece.row});
    }
  }
  EXPECT_GT(whole, 864 * 8 / 10);
}

TEST(CudaPieces, PartsBeginAtWholeTiles) {
  const AttentionPlan plan = dense_plan(1000, 1, 32);
  for (const AttentionPiece& piece :
       cut(plan, {.num_sms = 132, .smallest_part = 1, .most_parts = 8}).list) {
    EXPECT_EQ((piece.first_kv - plan.items.front().first_kv) % (kAttentionTileKv / 32), 0);
    if (piece.part + 1 == piece.num_parts) continue;
    EXPECT_EQ(piece.num_kv % (kAttentionTileKv / 32), 0);
  }
}

TEST(CudaPieces, TheLastBlockMayBeShort) {
  const Pieces pieces = cut(dense_plan(130, 1, 128), {.num_sms = 1, .most_parts = 1});
  ASSERT_EQ(pieces.list.size(), 2u);
  EXPECT_EQ(pieces.list[0].last_kv_tokens, 2);
  EXPECT_EQ(pieces.list[1].num_rows, 2);
}

TEST(CudaPieces, StartsHaveTheFirstTile) {
  for (const int block_kv : {16, 64, 128, 512}) {
    for (const int num_sms : {1, 7, 132}) {
      const AttentionPlan plan = dense_plan(1300, 3, block_kv);
      const Pieces pieces = cut(plan, {.num_sms = num_sms});
      ASSERT_EQ(pieces.starts.size(), static_cast<std::size_t>(num_sms));
      for (int sm = 0; sm < num_sms; ++sm) {
        const AttentionStart& start = pieces.starts[sm];
        EXPECT_EQ(start.first, pieces.first_of_sm[sm]);
        EXPECT_EQ(start.end, pieces.first_of_sm[sm + 1]);
        if (start.first == start.end) continue;
        const AttentionPiece& piece = pieces.list[start.first];
        EXPECT_EQ(start.piece.first_kv, piece.first_kv);
        EXPECT_EQ(start.piece.row, piece.row);
        int tokens = 0;
        for (int i = 0; i < std::max(1, kAttentionTileKv / block_kv); ++i) {
          if (i >= piece.num_kv) {
            EXPECT_EQ(start.groups[i].row, kNoRow);
            continue;
          }
          const Block block = plan.kv_grid.at(0, plan.kv_blocks[piece.first_kv + i]);
          EXPECT_EQ(start.groups[i].row, block.start);
          tokens += start.groups[i].valid;
        }
        const int first_row = plan.kv_blocks[piece.first_kv] * block_kv;
        EXPECT_EQ(tokens, std::min({kAttentionTileKv, 1300 - first_row, piece.num_kv * block_kv}));
      }
    }
  }
}

TEST(CudaPieces, ALiveItemWithoutKeysIsOnePiece) {
  AttentionPlan plan = dense_plan(256, 1, 128);
  plan.items[0].num_kv = 0;
  const Pieces pieces = cut(plan, {.num_sms = 1});
  EXPECT_EQ(pieces.list.back().num_kv, 0);
  EXPECT_EQ(pieces.list.back().num_parts, 1);
}

}  // namespace
}  // namespace flashomni::cuda
