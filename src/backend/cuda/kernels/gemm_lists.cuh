// gemm_lists.cuh -- from symbols to the head lists of build_gemm_plan (src/plan), and from those to
// the tiles of tiles.h. Tiles are made from a copy of the symbols: a projection may ask for them
// when the symbols are others already.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/block_scan.cuh"
#include "backend/cuda/kernels/gemm_lists_params.h"

namespace flashomni::cuda {

inline constexpr int kHeadListThreads = 256, kTileListThreads = 1024;
inline constexpr int kHeadListWarps = kHeadListThreads / 32, kTileListWarps = kTileListThreads / 32;

__device__ inline std::uint32_t bits_below(int bit) { return (1u << bit) - 1; }

// --- head lists ---

// A warp a row block: its list, the number of its cached heads, and whether they stayed.
__global__ void __launch_bounds__(kHeadListThreads)
    list_heads_kernel(const GemmListsParams params) {
  release_next_kernel();
  await_previous_kernel();
  const int index = blockIdx.x * kHeadListWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (index >= params.num_row_blocks) return;
  ListRow& row = params.rows[index];
  const std::int64_t first_word =
      (static_cast<std::int64_t>(row.batch) * params.num_q_blocks + row.q_block) *
      params.head_words;
  const std::uint32_t* live = params.cache + first_word;
  int num_live = 0;
  bool same = params.previous != nullptr;
  for (int w = 0; w < params.head_words; ++w) {
    num_live += __popc(live[w]);
    same = same && live[w] == params.previous[first_word + w];
  }
  const int num_cached = params.num_heads - num_live;
  std::int32_t* list = params.heads + static_cast<std::int64_t>(index) * params.num_heads;
  int before_word = 0;  // live heads
  for (int w = 0; w < params.head_words; ++w) {
    const std::uint32_t word = live[w];
    const int head = 32 * w + lane, before = before_word + __popc(word & bits_below(lane));
    const bool is_live = word >> lane & 1;
    if (head < params.num_heads) list[is_live ? num_cached + before : head - before] = head;
    if (lane == 0) params.live[index * params.head_words + w] = word;
    before_word += __popc(word);
  }
  if (lane > 0) return;
  row.num_cached = num_cached;
  row.same_as_previous = same;
}

__device__ inline GemmTile tile_of(const GemmListsParams& lists, int index) {
  const ListRow& row = lists.rows[index];
  return {row.batch,
          row.row,
          row.num_rows,
          0,
          kWideTile,
          index * lists.num_heads,
          static_cast<std::int16_t>(row.num_cached),
          static_cast<std::int16_t>(lists.num_heads - row.num_cached),
          row.q_block,
          row.same_as_previous,
          0};
}

// --- GEMM-O ---

// A warp a row block. The order is that of a stable sort: a row block comes after those with fewer
// cached heads, and those with as many that are before it.
__global__ void __launch_bounds__(kHeadListThreads)
    column_tiles_kernel(const GemmListsParams lists, const ColumnTilesParams params) {
  release_next_kernel();
  await_previous_kernel();
  const int index = blockIdx.x * kHeadListWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (index >= lists.num_row_blocks) return;
  GemmTile tile = tile_of(lists, index);
  int before = 0;
  for (int other = lane; other < lists.num_row_blocks; other += 32) {
    const int num_cached = lists.rows[other].num_cached;
    before += num_cached < tile.num_cached || (num_cached == tile.num_cached && other < index);
  }
  const int first = static_cast<int>(__reduce_add_sync(~0u, before)) * params.columns;
  for (int column = lane; column < params.columns; column += 32) {
    const int whole = first + column, wide = params.wide_tiles;
    tile.column = column * 2 * kWideTile;
    if (whole < wide) {
      params.tiles[whole] = tile;
      continue;
    }
    const int narrow = params.narrow_column ? whole / params.columns - wide / params.columns : 0;
    GemmTile* to = params.tiles + wide + 2 * (whole - wide) - narrow;
    GemmTile half = tile;
    half.width = kWideTile / 2;
    to[0] = half;
    half.column += kWideTile;
    if (half.column < params.out_features) to[1] = half;
  }
}

// --- GEMM-Q, head_dim 64 ---

// One thread block; a thread a row block, whose live heads it cuts.
__global__ void __launch_bounds__(kTileListThreads)
    row_tiles_kernel(const GemmListsParams lists, int heads_per_tile, GemmTile* tiles,
                     std::int32_t* num_tiles) {
  __shared__ int scratch[kTileListWarps];
  release_next_kernel();
  await_previous_kernel();
  int next = 0;
  for (int begin = 0; begin < lists.num_row_blocks; begin += kTileListThreads) {
    const int index = begin + static_cast<int>(threadIdx.x);
    GemmTile tile{};
    if (index < lists.num_row_blocks) tile = tile_of(lists, index);
    const int num_live = tile.num_live;
    const auto before = block_scan<kTileListThreads>(
        (num_live + heads_per_tile - 1) / heads_per_tile, Sum{}, scratch);
    GemmTile* to = tiles + next + before.before;
    tile.first_head += tile.num_cached;
    tile.num_cached = 0;
    for (int left = num_live; left > 0; left -= heads_per_tile) {
      tile.num_live = static_cast<std::int16_t>(min(left, heads_per_tile));
      *to++ = tile;
      tile.first_head += heads_per_tile;
    }
    next += before.all;
  }
  if (threadIdx.x == 0) *num_tiles = next;
}

// --- GEMM-Q, head_dim 128 ---

// Words of bits that say in which row blocks a head is live; the last has room for one more.
__host__ __device__ constexpr int column_words(int num_row_blocks) {
  return num_row_blocks / 32 + 1;
}

// Dynamic shared memory of head_tiles_kernel.
constexpr std::size_t head_tiles_shared_bytes(int num_heads, int num_row_blocks) {
  const auto heads = static_cast<std::size_t>(num_heads);
  const std::size_t words = 2 * heads * column_words(num_row_blocks) + num_row_blocks;
  return 16 * ((words + 3) / 4);  // ptxas may read four values where fewer are left
}

// Of one thread block. Each finds out where all tiles go, which takes little, and writes its share.
struct HeadTileMaker {
  const GemmListsParams& lists;
  const int words;         // of a head
  std::uint32_t* columns;  // [num_heads, words]: bit i: live in row block i
  int* before;             // [num_heads, words]: live row blocks before those of the word
  int* first;              // [num_row_blocks]: tiles that row blocks before this one complete
  int* scratch;
  LastRound cut;
  int uncut = 0;      // whole tiles that stay so
  int cut_fours = 0;  // of the others, those of four row blocks

  __device__ HeadTileMaker(const GemmListsParams& lists, int* memory, int* scratch)
      : lists(lists),
        words(column_words(lists.num_row_blocks)),
        columns(reinterpret_cast<std::uint32_t*>(memory)),
        before(memory + lists.num_heads * words),
        first(before + lists.num_heads * words),
        scratch(scratch) {}

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int warp() { return threadIdx.x / 32; }

  // A warp takes the words of 32 heads and 32 row blocks, rows of bits, and turns them.
  __device__ void turn_bits() {
    for (int task = warp(); task < words * lists.head_words; task += kTileListWarps) {
      const int word = task / lists.head_words, head_word = task % lists.head_words;
      const int row = 32 * word + lane(), head = 32 * head_word + lane();
      const std::uint32_t bits =
          row < lists.num_row_blocks ? lists.live[row * lists.head_words + head_word] : 0;
      std::uint32_t mine = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const std::uint32_t column = __ballot_sync(~0u, bits >> bit & 1);
        if (lane() == bit) mine = column;
      }
      if (head < lists.num_heads) columns[head * words + word] = mine;
    }
    __syncthreads();
    for (int head = threadIdx.x; head < lists.num_heads; head += kTileListThreads) {
      int sum = 0;
      for (int word = 0; word < words; ++word) {
        before[head * words + word] = sum;
        sum += __popc(columns[head * words + word]);
      }
    }
    __syncthreads();
  }
  // Row blocks before `row` in which the head is live.
  __device__ int count_before(int head, int row) const {
    const int at = head * words + row / 32;
    return before[at] + __popc(columns[at] & bits_below(row % 32));
  }
  // Whether row block `row` is the fourth that waits for the head; a vote of the warp.
  __device__ std::uint32_t vote_completes(int head, int row) const {
    const bool completes = head < lists.num_heads &&
                           (columns[head * words + row / 32] >> row % 32 & 1) &&
                           count_before(head, row) % 4 == 3;
    return __ballot_sync(~0u, completes);
  }
  // Sets `first`; returns the number of tiles of four row blocks.
  __device__ int place_row_blocks() {
    const int num_rows = lists.num_row_blocks;
    for (int row = warp(); row < num_rows; row += kTileListWarps) {
      int count = 0;
      for (int head = 0; head < lists.num_heads; head += 32) {
        count += __popc(vote_completes(head + lane(), row));
      }
      if (lane() == 0) first[row] = count;
    }
    __syncthreads();
    int next = 0;
    for (int begin = 0; begin < num_rows; begin += kTileListThreads) {
      const int row = begin + static_cast<int>(threadIdx.x);
      const auto tiles =
          block_scan<kTileListThreads>(row < num_rows ? first[row] : 0, Sum{}, scratch);
      if (row < num_rows) first[row] = next + tiles.before;
      next += tiles.all;
    }
    __syncthreads();
    return next;
  }

  __device__ int last_live_before(int head, int row) const {
    int word = row / 32;
    std::uint32_t bits = columns[head * words + word] & bits_below(row % 32);
    while (bits == 0) bits = columns[head * words + --word];
    return 32 * word + 31 - __clz(static_cast<int>(bits));
  }
  // The last `count` row blocks before `end` in which the head is live.
  __device__ HeadTile gather(int head, int end, int count) const {
    HeadTile tile{head, 0, {}, 0};
#pragma unroll
    for (int i = 3; i >= 0; --i) {
      if (i >= count) continue;
      end = last_live_before(head, end);
      const ListRow& row = lists.rows[end];
      tile.rows[i] = {row.batch, row.row, row.num_rows};
    }
    return tile;
  }
  // The row blocks of `tile` from the i-th on, `count` of them, 1 or 2.
  __device__ static HeadTile in_halves_of(const HeadTile& tile, int i, int count) {
    const RowRange first = tile.rows[i], second = count == 2 ? tile.rows[i + 1] : RowRange{};
    return {tile.head, 1, {first, second, first, second}, 0};
  }
  // Of `num_rows` row blocks, 3 or 4, the index-th of the whole tiles. Those of four come first.
  __device__ void put_whole(const HeadTile& tile, int num_rows, int index, HeadTile* tiles) const {
    if (index < uncut) {
      tiles[index] = tile;
      return;
    }
    const int cut_before = index - uncut;
    int place = uncut + 2 * cut_before;
    if (cut.rest_rows == 1) {
      const int fours = num_rows == 4 ? cut_before : cut_fours;
      place = uncut + 4 * fours + 3 * (cut_before - fours);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i % cut.rest_rows || i >= num_rows) continue;
      tiles[place++] = in_halves_of(tile, i, cut.rest_rows);
    }
  }
  // The tiles that the row blocks of this thread block complete.
  __device__ void put_completed(HeadTile* tiles) const {
    for (int row = blockIdx.x * kTileListWarps + warp(); row < lists.num_row_blocks;
         row += gridDim.x * kTileListWarps) {
      int next = first[row];
      for (int head = lane(); head - lane() < lists.num_heads; head += 32) {
        const std::uint32_t completes = vote_completes(head, row);
        const int index = next + __popc(completes & bits_below(lane()));
        if (completes >> lane() & 1) put_whole(gather(head, row + 1, 4), 4, index, tiles);
        next += __popc(completes);
      }
    }
  }
  __device__ void run(int num_clusters, HeadTile* tiles, std::int32_t* num_tiles) {
    turn_bits();
    const int fours = place_row_blocks();
    // A thread a head: what is left of it.
    const int head = threadIdx.x, num_rows = lists.num_row_blocks;
    const int left = head < lists.num_heads ? count_before(head, num_rows) % 4 : 0;
    const int left_rows = left < 3 ? left : 0;  // of less than a whole tile
    const auto threes = block_scan<kTileListThreads>(left == 3 ? 1 : 0, Sum{}, scratch);
    const auto small = block_scan<kTileListThreads>(left_rows > 0 ? 1 : 0, Sum{}, scratch);
    const auto ones = block_scan<kTileListThreads>(left_rows, Sum{}, scratch);
    const int whole = fours + threes.all, rest = whole % num_clusters;
    cut_fours = max(rest - threes.all, 0);
    const int rest_rows = 4 * cut_fours + 3 * (rest - cut_fours);
    cut = cut_last_round({{rest, 2 * rest, rest_rows}, {small.all, small.all, ones.all}},
                         num_clusters);
    uncut = cut.rest_rows == 4 ? whole : whole - rest;
    put_completed(tiles);
    if (blockIdx.x > 0) return;
    const int num_cut = cut.rest_rows == 4 ? 0 : cut.rest_rows == 2 ? 2 * rest : rest_rows;
    const int first_left = uncut + num_cut;
    if (left == 3) {
      put_whole(gather(head, num_rows, 3), 3, fours + threes.before, tiles);
    } else if (left > 0) {
      const HeadTile tile = gather(head, num_rows, left);
      HeadTile* to = tiles + first_left + (cut.left_rows == 1 ? ones.before : small.before);
      if (cut.left_rows == 4) {
        *to = {tile.head, 0, {tile.rows[0], {}, tile.rows[1], {}}, 0};  // one a thread block
      } else {
        *to = in_halves_of(tile, 0, cut.left_rows);
        if (left > cut.left_rows) to[1] = in_halves_of(tile, 1, 1);
      }
    }
    if (threadIdx.x == 0) {
      *num_tiles = first_left + (cut.left_rows == 1 ? ones.all : small.all);
    }
  }
};

// Up to kTileListThreads heads.
__global__ void __launch_bounds__(kTileListThreads)
    head_tiles_kernel(const GemmListsParams lists, int num_clusters, HeadTile* tiles,
                      std::int32_t* num_tiles) {
  extern __shared__ float4 head_tiles_memory[];
  __shared__ int scratch[kTileListWarps];
  release_next_kernel();
  await_previous_kernel();
  HeadTileMaker(lists, reinterpret_cast<int*>(head_tiles_memory), scratch)
      .run(num_clusters, tiles, num_tiles);
}

}  // namespace flashomni::cuda
