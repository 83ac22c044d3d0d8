// attention_sm90_load.cuh -- the two producing warps of attention_sm90.cuh.
//
// The scheduler reads the pieces of this thread block and looks up what their first loads need,
// several pieces ahead: that is a chain of three dependent reads, each 1-2 us while the loads
// saturate L2. Of the first piece it is one read (AttentionStart). It writes the rows of pieces
// without kv tiles, which go no further. The loader issues the TMA loads of Q and of the ring of K
// and V tiles.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/kernels/attention_params.h"

namespace flashomni::cuda {

// How a piece's kv list falls into groups and tiles.
template <typename Kernel>
struct AttentionGroups {
  const AttentionParams& params;
  int lane;
  int group_rows = 1 << params.log2_group_rows;
  int groups_per_tile = Kernel::kTileKv >> params.log2_group_rows;

  __device__ int count(const AttentionPiece& piece) const {
    if (piece.num_kv <= 0) return 0;
    return ((piece.num_kv - 1) << params.log2_groups_per_block) +
           ((piece.last_kv_tokens + group_rows - 1) >> params.log2_group_rows);
  }
  __device__ int count_tiles(const AttentionPiece& piece) const {
    return (count(piece) + groups_per_tile - 1) >> (31 - __clz(groups_per_tile));
  }

  // This lane's group of tile `tile`.
  __device__ AttentionGroup find(const AttentionPiece& piece, int tile) const {
    const int group = tile * groups_per_tile + lane;
    if (lane >= groups_per_tile || group >= count(piece)) return {kNoRow, 0};
    const int block = params.kv_blocks[piece.first_kv + (group >> params.log2_groups_per_block)];
    const int2 tokens = params.kv_table[piece.batch * params.num_kv_blocks + block];
    const int offset = (group & ((1 << params.log2_groups_per_block) - 1)) * group_rows;
    return {tokens.x + offset, min(max(tokens.y - offset, 0), group_rows)};
  }
};

// Words 0, 1, ... from lanes 0, 1, ...: shuffled values are known to be the same in the whole warp,
// loaded ones are not, and branches on those would be compiled for a warp that may diverge.
__device__ inline AttentionPiece gather_piece(int word) {
  const auto at = [word](int i) { return __shfl_sync(~0u, word, i); };
  const int parts = at(7);
  return {at(0),
          at(1),
          at(2),
          at(3),
          at(4),
          at(5),
          at(6),
          static_cast<std::int16_t>(parts),
          static_cast<std::int16_t>(parts >> 16),
          at(8)};
}
inline constexpr int kPieceWords = sizeof(AttentionPiece) / sizeof(int);
inline constexpr int kStartWords = sizeof(AttentionStart) / sizeof(int);
static_assert(kStartWords <= 32);

// One warp.
template <typename Kernel>
struct AttentionScheduler {
  const AttentionParams& params;
  typename Kernel::SharedStorage& shared;
  int lane;
  AttentionGroups<Kernel> groups{params, lane};
  typename Kernel::WorkRing ring{};

  __device__ void publish(const AttentionPiece& piece, int tiles, const AttentionGroup& first) {
    shared.ahead_empty[ring.slot].wait(ring.phase ^ 1);
    auto& work = shared.ahead[ring.slot];
    if (lane < kMostGroups) work.first[lane] = first;
    if (lane == 0) {
      work.piece = piece;
      work.tiles = tiles;
    }
    __syncwarp();
    if (lane == 0) shared.ahead_full[ring.slot].arrive();
    ring.advance();
  }

  // Rows of a piece without kv tiles.
  __device__ void write_empty(const AttentionPiece& piece) const {
    constexpr int kLanesARow = Kernel::kHeadDim / 8;
    for (int row = lane / kLanesARow; row < piece.num_rows; row += 32 / kLanesARow) {
      auto* out = static_cast<typename Kernel::Element*>(params.out) +
                  piece.batch * params.out_batch_stride +
                  (piece.row + row) * params.out_row_stride + piece.head * params.out_head_stride;
      reinterpret_cast<uint4*>(out)[lane % kLanesARow] = uint4{0, 0, 0, 0};
      if (!params.lse || lane % kLanesARow != 0) continue;
      params.lse[piece.batch * params.lse_batch_stride + piece.head * params.lse_head_stride +
                 (piece.row + row) * params.lse_row_stride] = -INFINITY;
    }
    __syncwarp();
  }

  // A lane's word of what the thread block begins with; fetches the table of kv blocks of item 0
  // besides, for the reads to come.
  __device__ static int read_start(const AttentionParams& params, int lane) {
    constexpr int kEntriesALine = 128 / sizeof(int2);
    const int* words = reinterpret_cast<const int*>(params.starts + blockIdx.x);
    const int word = lane < kStartWords ? words[lane] : 0;
    if (lane * kEntriesALine < params.num_kv_blocks) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(params.kv_table + lane * kEntriesALine));
    }
    return word;
  }

  __device__ void run(int word) {
    AttentionPiece piece = gather_piece(word);
    int index = __shfl_sync(~0u, word, kPieceWords);
    const int end = __shfl_sync(~0u, word, kPieceWords + 1);
    const int at = kPieceWords + 2 + 2 * (lane % kMostGroups);
    AttentionGroup first{__shfl_sync(~0u, word, at), __shfl_sync(~0u, word, at + 1)};
    while (index < end) {
      const int tiles = groups.count_tiles(piece);
      if (tiles > 0) {
        publish(piece, tiles, first);
      } else {
        write_empty(piece);
      }
      if (++index == end) break;
      const int* words = reinterpret_cast<const int*>(params.pieces + index);
      piece = gather_piece(lane < kPieceWords ? words[lane] : 0);
      first = groups.find(piece, 0);
    }
    publish({}, -1, {});
  }
};

// One warp.
template <typename Kernel>
struct AttentionLoader {
  using T = typename Kernel::Element;
  struct TileSource {
    const CUtensorMap* map;
    int head, batch;
  };

  const AttentionParams& params;
  typename Kernel::SharedStorage& shared;
  int lane;
  AttentionGroups<Kernel> groups{params, lane};
  typename Kernel::Ring ring{};
  typename Kernel::WorkRing work_ring{};
  std::uint32_t q_phase = 0;

  // The next piece from the scheduler, and this lane's group of its first tile.
  __device__ int take(AttentionPiece& piece, AttentionGroup& first) {
    shared.ahead_full[work_ring.slot].wait(work_ring.phase);
    const auto& work = shared.ahead[work_ring.slot];
    const int* words = reinterpret_cast<const int*>(&work.piece);
    piece = gather_piece(lane < kPieceWords ? words[lane] : 0);
    const int tiles = __shfl_sync(~0u, work.tiles, 0);
    first = work.first[lane < kMostGroups ? lane : 0];
    __syncwarp();
    if (lane == 0) shared.ahead_empty[work_ring.slot].arrive();
    work_ring.advance();
    return tiles;
  }

  // Hands a piece to the consumers and loads its Q.
  __device__ void hand_on(const AttentionPiece& piece, int tiles) {
    shared.work_empty.wait(q_phase ^ 1);
    q_phase ^= 1;
    if (lane == 0) {
      shared.work.piece = piece;
      shared.work.tiles = tiles;
      if (tiles > 0) {
        shared.work_full.arrive_expecting(Kernel::kQBytes);
        for (int panel = 0; panel < Kernel::kPanels; ++panel) {
          tma_load(shared.q + panel * Kernel::kTileQ * kPanelColumns, &params.q_map,
                   shared.work_full, panel * kPanelColumns, piece.head, piece.row, piece.batch);
        }
      } else {
        shared.work_full.arrive();
      }
    }
    __syncwarp();
  }

  // `row` of lane i is where group i of the tile begins. One lane issues every load.
  __device__ void load_tile(const TileSource& source, int row) {
    Barrier& full = shared.full[ring.slot];
    T* tile = shared.ring[ring.slot];
    if (lane == 0) full.arrive_expecting(Kernel::kTileBytes);
#pragma unroll 1
    for (int group = 0; group < groups.groups_per_tile; ++group) {
      const int first_row = __shfl_sync(~0u, row, group);
      if (lane == 0) {
#pragma unroll
        for (int panel = 0; panel < Kernel::kPanels; ++panel) {
          tma_load(tile + (panel * Kernel::kTileKv + group * groups.group_rows) * kPanelColumns,
                   source.map, full, panel * kPanelColumns, source.head, first_row, source.batch);
        }
      }
    }
    __syncwarp();
    ring.advance();
  }
  __device__ void wait_for_slot() { shared.empty[ring.slot].wait(ring.phase ^ 1); }

  // Tells the consumers which keys of the K tile in the current slot to leave out.
  __device__ void describe_mask(const AttentionGroup& group) {
    const bool in_tile = lane < groups.groups_per_tile;
    const bool has_mask = __any_sync(~0u, in_tile && group.valid < groups.group_rows);
    if (lane == 0) shared.has_mask[ring.slot] = has_mask;
    if (has_mask && in_tile) {
      const int count = groups.group_rows / Kernel::kMaskGroup;
      for (int i = 0; i < count; ++i) {
        shared.valid_keys[ring.slot][lane * count + i] =
            min(max(group.valid - i * Kernel::kMaskGroup, 0), Kernel::kMaskGroup);
      }
    }
    __syncwarp();
  }

  __device__ void run() {
    while (true) {
      AttentionPiece piece;
      AttentionGroup group;
      const int tiles = take(piece, group);
      if (tiles < 0) break;
      hand_on(piece, tiles);
      const int kv_head = piece.head / params.heads_per_kv_head;
      const CUtensorMap* maps = params.kv_maps ? params.kv_maps + 2 * piece.batch : nullptr;
      if (maps) acquire_tensor_maps(maps);
      const TileSource k{maps ? maps : &params.k_map, kv_head, piece.batch};
      const TileSource v{maps ? maps + 1 : &params.v_map, kv_head, piece.batch};
      int v_row = 0;  // of the V tile still to be loaded: it follows the next K tile in the ring
      for (int tile = 0; tile < tiles; ++tile) {
        wait_for_slot();
        describe_mask(group);
        load_tile(k, group.row);
        if (tile > 0) {
          wait_for_slot();
          load_tile(v, v_row);
        }
        v_row = group.row;
        if (tile + 1 < tiles) group = groups.find(piece, tile + 1);
      }
      wait_for_slot();
      load_tile(v, v_row);
    }
    hand_on({}, -1);
  }
};

}  // namespace flashomni::cuda
