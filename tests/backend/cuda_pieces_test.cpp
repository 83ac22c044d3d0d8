// The CUDA backend's cutting of attention items into pieces: plain C++, tested without a GPU.
#include <map>
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

TEST(CudaPieces, CoverEveryItemOnceInOrder) {
  for (const int block_kv : {16, 64, 128, 256}) {
    const AttentionPlan plan = dense_plan(1300, 3, block_kv);
    const Pieces pieces =
        cut(plan, {.num_sms = 7, .most_items_per_sm = 99, .smallest_part = 1, .most_parts = 5});
    std::size_t at = 0;
    for (const AttentionItem& item : plan.items) {
      std::int32_t next = item.first_kv;
      for (int part = 0, parts = pieces.list[at].num_parts; part < parts; ++part, ++at) {
        const AttentionPiece& piece = pieces.list[at];
        EXPECT_EQ(std::tuple(piece.batch, piece.head), std::tuple(item.batch, item.head));
        EXPECT_EQ(piece.row, plan.q_grid.at(item.batch, item.q_block).start);
        EXPECT_EQ(std::tuple(piece.part, piece.num_parts), std::tuple(part, parts));
        EXPECT_EQ(piece.first_kv, next);
        EXPECT_GT(piece.num_kv, 0);
        next += piece.num_kv;
      }
      EXPECT_EQ(next, item.first_kv + item.num_kv);
    }
    EXPECT_EQ(at, pieces.list.size());
  }
}

TEST(CudaPieces, PartsOfOneItemHaveSlotsOfTheirOwn) {
  const Pieces pieces =
      cut(dense_plan(4096, 2, 128),
          {.num_sms = 8, .most_items_per_sm = 99, .smallest_part = 2, .most_parts = 16});
  std::map<int, int> users;
  for (const AttentionPiece& piece : pieces.list) {
    if (piece.num_parts > 1) ++users[piece.slot + piece.part];
  }
  EXPECT_EQ(users.size(), static_cast<std::size_t>(pieces.num_slots));
  EXPECT_GT(pieces.num_slots, 0);
  for (const auto& [slot, count] : users) EXPECT_EQ(count, 1) << "slot " << slot;
}

TEST(CudaPieces, OnlyTheLastItemsOfALongPlanAreCut) {
  const Pieces pieces = cut(dense_plan(16896, 24, 128), {.most_items_per_sm = 99});
  EXPECT_EQ(pieces.list.front().num_parts, 1);
  EXPECT_GT(pieces.list.back().num_parts, 1);
  bool cut_before = false;
  for (const AttentionPiece& piece : pieces.list) {
    EXPECT_FALSE(cut_before && piece.num_parts == 1) << "a whole item after a cut one";
    cut_before = piece.num_parts > 1;
  }
}

TEST(CudaPieces, OnlyPlansOfFewItemsAreCut) {
  EXPECT_EQ(cut(dense_plan(4096, 3, 128), {.num_sms = 132}).num_slots, 0);  // 96 items
  EXPECT_GT(cut(dense_plan(4096, 2, 128), {.num_sms = 132}).num_slots, 0);  // 64
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
  const Pieces pieces = cut(dense_plan(130, 1, 128), {.most_parts = 1});
  ASSERT_EQ(pieces.list.size(), 2u);
  EXPECT_EQ(pieces.list[0].last_kv_tokens, 2);
  EXPECT_EQ(pieces.list[1].num_rows, 2);
}

TEST(CudaPieces, ALiveItemWithoutKeysIsOnePiece) {
  AttentionPlan plan = dense_plan(256, 1, 128);
  plan.items[0].num_kv = 0;
  const Pieces pieces = cut(plan, {});
  EXPECT_EQ(pieces.list[0].num_kv, 0);
  EXPECT_EQ(pieces.list[0].num_parts, 1);
}

}  // namespace
}  // namespace flashomni::cuda
