// attention_deal.cuh -- deals items to multiprocessors exactly as cut_into_pieces (pieces.cpp)
// does: item by item to the one that is free first.
//
// That rule is sequential, but many steps can be taken at once. Let the multiprocessors be sorted
// by when they are free, and let the next items go to them in that order. As long as the one at
// position t is free before any at a position below t is again, the rule would have chosen the
// same.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cuda/kernels/attention_items.cuh"

namespace flashomni::cuda {

inline constexpr int kDealThreads = kMostMultiprocessors;

// One thread block; thread t has the multiprocessor at position t.
struct Dealer {
  // A multiprocessor and when it is free, in tiles: the first decides, then the index.
  static constexpr int kIndexBits = 8;
  static constexpr unsigned kNever = ~0u;
  static constexpr int kStaged = 4 * kDealThreads;
  static constexpr int kMostSorted = kMostSortedPerSm * kMostMultiprocessors;

  struct Part {
    int item, first, count, number;
  };
  struct Shared {
    alignas(16) unsigned keys[kDealThreads];
    unsigned order[kDealThreads], minima[kDealThreads / 32];
    int sums[kDealThreads / 32];
    int units[kStaged];  // of the items from `staged` on
    int lengths[kMostSorted];
    std::int16_t sorted[kMostSorted];  // the last items longest first, from `first_sorted` on
    Part rests[kDealThreads], now[kDealThreads];
    int cut_items[kDealThreads];
    int pieces_of[kDealThreads];
    int limit;
  };

  const AttentionListsParams& params;
  Shared& shared;
  unsigned key;       // of this thread's multiprocessor
  int end = 0;        // when all could end together
  int num_parts = 0;  // dealt so far
  int num_cuts = 0, num_rests = 0;
  int staged = 0, num_staged = 0;
  int first_sorted = 0;

  __device__ Dealer(const AttentionListsParams& params, Shared& shared)
      : params(params), shared(shared), key(threadIdx.x) {
    if (threadIdx.x >= params.options.num_sms) key = kNever;
    shared.pieces_of[threadIdx.x] = 0;
  }

  // The multiprocessors in the order in which they are free.
  __device__ void sort_keys() {
    shared.keys[threadIdx.x] = key;
    __syncthreads();
    const bool has = threadIdx.x < params.options.num_sms;
    if (has) {
      int rank = 0;
#pragma unroll 4
      for (int i = 0; i < params.options.num_sms; i += 4) {
        const uint4 keys = *reinterpret_cast<const uint4*>(shared.keys + i);
        rank += (keys.x < key) + (keys.y < key) + (keys.z < key) + (keys.w < key);
      }
      shared.order[rank] = key;
    }
    __syncthreads();
    if (has) key = shared.order[threadIdx.x];
  }

  // The last few items a multiprocessor, of whatever head, longest first.
  __device__ void sort_last(int num_items) {
    const int count = min(params.options.sorted_per_sm * params.options.num_sms, num_items);
    first_sorted = num_items - count;
    for (int i = threadIdx.x; i < count; i += kDealThreads) {
      shared.lengths[i] = params.items[first_sorted + i].num_kv;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kDealThreads) {
      int rank = 0;
      for (int j = 0; j < count; ++j) {
        const int other = shared.lengths[j], own = shared.lengths[i];
        rank += other > own || (other == own && j < i);
      }
      shared.sorted[rank] = static_cast<std::int16_t>(i);
    }
    __syncthreads();
  }
  // The item that is dealt as number `at`.
  __device__ int item_at(int at) const {
    return at < first_sorted ? at : first_sorted + shared.sorted[at - first_sorted];
  }

  // Looks up the lengths of the items from `next` on, if those of a whole round are not at hand.
  __device__ void stage_items(int next, int num_items) {
    if (next + kDealThreads <= staged + num_staged || staged + num_staged == num_items) return;
    staged = next;
    num_staged = min(kStaged, num_items - next);
    const int per_unit = params.options.blocks_per_unit;
    for (int i = threadIdx.x; i < num_staged; i += kDealThreads) {
      shared.units[i] = (params.items[item_at(next + i)].num_kv + per_unit - 1) / per_unit;
    }
    __syncthreads();
  }

  // How many units of a part its multiprocessor takes.
  __device__ int fit(const Part& part) const {
    const DealOptions& options = params.options;
    if (part.count < 2 * options.smallest_units || num_cuts >= options.most_cuts) return part.count;
    const int room = end - static_cast<int>(key >> kIndexBits) - options.piece_cost;
    const int parts_left = options.most_parts - part.number;
    const int even = (part.count + parts_left - 1) / parts_left;
    const int fitting = max(max(room / options.tiles_per_unit, even), options.smallest_units);
    return part.count > fitting ? min(fitting, part.count - options.smallest_units) : part.count;
  }

  // Deals as many of the waiting parts as can be dealt at once, at least one; returns how many.
  // Thread t has the t-th of `waiting` parts.
  __device__ int deal_some(const Part& part, int waiting) {
    const DealOptions& options = params.options;
    const bool has = threadIdx.x < min(waiting, options.num_sms);
    const int count = has ? fit(part) : 0;
    const int cost = count * options.tiles_per_unit + options.piece_cost;
    const unsigned later = has ? key + (static_cast<unsigned>(cost) << kIndexBits) : kNever;
    const int is_cut = has && count < part.count;
    const unsigned earliest = block_scan<kDealThreads>(later, Minimum{}, shared.minima).before;
    const auto cuts = block_scan<kDealThreads>(is_cut, Sum{}, shared.sums);
    const bool fails =
        !has || key > earliest || (is_cut && num_cuts + cuts.before >= options.most_cuts);
    if (threadIdx.x == 0) shared.limit = kDealThreads;
    __syncthreads();
    if (fails) atomicMin(&shared.limit, static_cast<int>(threadIdx.x));
    __syncthreads();
    const int dealt = shared.limit;

    const bool takes = threadIdx.x < dealt;
    if (takes) {
      const int sm = key & ((1 << kIndexBits) - 1);
      params.parts[num_parts + threadIdx.x] = {part.item,
                                               part.first,
                                               count,
                                               static_cast<std::int16_t>(part.number),
                                               static_cast<std::int16_t>(sm),
                                               shared.pieces_of[sm]++};
      params.parts_of[part.item] = static_cast<std::int16_t>(part.number + 1);
      key = later;
    }
    if (takes && is_cut) {
      shared.rests[num_rests + cuts.before] = {part.item, part.first + count, part.count - count,
                                               part.number + 1};
    }
    const int new_cuts = block_scan<kDealThreads>(takes && is_cut ? 1 : 0, Sum{}, shared.sums).all;
    num_rests += new_cuts;
    num_cuts += new_cuts;
    num_parts += dealt;
    return dealt;
  }

  __device__ void deal_items(int num_items) {
    for (int next = 0; next < num_items;) {
      sort_keys();
      stage_items(next, num_items);
      const int waiting = num_items - next, mine = static_cast<int>(threadIdx.x);
      Part part{};
      if (mine < waiting) part = {item_at(next + mine), 0, shared.units[next + mine - staged], 0};
      next += deal_some(part, waiting);
    }
  }

  // The rests of the round before, long ones first.
  __device__ void deal_rests() {
    const int count = num_rests, mine = static_cast<int>(threadIdx.x);
    if (mine < count) {
      int rank = 0;
      for (int i = 0; i < count; ++i) {
        const int other = shared.rests[i].count, own = shared.rests[mine].count;
        rank += other > own || (other == own && i < mine);
      }
      shared.now[rank] = shared.rests[mine];
    }
    __syncthreads();
    num_rests = 0;
    for (int next = 0; next < count;) {
      sort_keys();
      const int waiting = count - next;
      next += deal_some(mine < waiting ? shared.now[next + mine] : Part{}, waiting);
    }
  }

  // The items that were cut, in their own order.
  __device__ void list_cut_items() {
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < num_rests) {
      int rank = 0;
      for (int i = 0; i < num_rests; ++i) rank += shared.rests[i].item < shared.rests[mine].item;
      shared.cut_items[rank] = shared.rests[mine].item;
    }
    __syncthreads();
  }

  // Where the partial results of cut items go, and the pieces of each multiprocessor.
  __device__ void lay_out(int num_cut_items) {
    const int mine = static_cast<int>(threadIdx.x);
    const int item = mine < num_cut_items ? shared.cut_items[mine] : 0;
    const int parts = mine < num_cut_items ? params.parts_of[item] : 0;
    const int slot = block_scan<kDealThreads>(parts, Sum{}, shared.sums).before;
    if (mine < num_cut_items) params.slots[item] = slot;
    const int first =
        block_scan<kDealThreads>(shared.pieces_of[threadIdx.x], Sum{}, shared.sums).before;
    if (mine < params.options.num_sms) {
      params.first_of_sm[mine] = first;
      params.starts[mine].first = first;
      params.starts[mine].end = first + shared.pieces_of[mine];
    }
    if (mine > 0) return;
    params.first_of_sm[params.options.num_sms] = num_parts;
    *params.num_parts = num_parts;
  }

  __device__ void run() {
    const DealOptions& options = params.options;
    const GroupTotals totals =
        sum_groups<kDealThreads>(params.totals, params.batch * params.num_heads, shared.sums);
    const std::int64_t work = static_cast<std::int64_t>(totals.units) * options.tiles_per_unit +
                              static_cast<std::int64_t>(totals.items) * options.piece_cost;
    end = static_cast<int>((work + options.num_sms - 1) / options.num_sms) + options.piece_cost +
          options.smallest_part / 2;
    sort_last(totals.items);
    deal_items(totals.items);
    const int num_cut_items = num_rests;
    list_cut_items();
    while (num_rests > 0) deal_rests();
    lay_out(num_cut_items);
  }
};

__global__ void __launch_bounds__(kDealThreads) deal_kernel(const AttentionListsParams params) {
  __shared__ Dealer::Shared shared;
  release_next_kernel();
  await_previous_kernel();
  Dealer(params, shared).run();
}

// What a multiprocessor begins with (first_groups in pieces.cpp).
__device__ inline void write_start(const AttentionListsParams& params, const AttentionPiece& piece,
                                   AttentionStart& start) {
  start.piece = piece;
  const int last = piece.num_kv - 1;
  for (int i = 0; i < params.options.blocks_per_unit; ++i) {
    start.groups[i] = {kNoRow, 0};
    if (i > last || (i == last && piece.last_kv_tokens == 0)) continue;
    const int block = params.kv_blocks[piece.first_kv + i];
    const int4 tokens = params.kv.blocks[piece.batch * params.kv.num_blocks + block];
    start.groups[i] = {tokens.x, min(tokens.y, kAttentionTileKv)};
  }
}

// Parts become pieces, each where its multiprocessor looks for it.
__global__ void __launch_bounds__(kListThreads)
    write_pieces_kernel(const AttentionListsParams params) {
  release_next_kernel();
  await_previous_kernel();
  const int step = gridDim.x * kListThreads, begin = blockIdx.x * kListThreads + threadIdx.x;
  const int kv_blocks = params.batch * params.kv.num_blocks;
  for (int i = begin; i < kv_blocks; i += step) {
    params.kv_table[i] = {params.kv.blocks[i].x, params.kv.blocks[i].y};
  }
  for (int i = begin; i < *params.num_parts; i += step) {
    const DealtPart part = params.parts[i];
    const ListItem item = params.items[part.item];
    const int4 rows = params.q.blocks[item.batch * params.q.num_blocks + item.q_block];
    const int first = part.first * params.options.blocks_per_unit;
    const int end = min(item.num_kv, (part.first + part.count) * params.options.blocks_per_unit);
    int last_tokens = 0;
    if (end > first) {
      const int last = params.kv_blocks[item.first_kv + end - 1];
      last_tokens = params.kv.blocks[item.batch * params.kv.num_blocks + last].y;
    }
    const std::int16_t num_parts = params.parts_of[part.item];
    const AttentionPiece piece = {item.batch,
                                  item.head,
                                  rows.x,
                                  rows.y,
                                  item.first_kv + first,
                                  end - first,
                                  last_tokens,
                                  part.number,
                                  num_parts,
                                  num_parts > 1 ? params.slots[part.item] : 0};
    params.pieces[params.first_of_sm[part.sm] + part.order] = piece;
    if (part.order == 0) write_start(params, piece, params.starts[part.sm]);
  }
}

}  // namespace flashomni::cuda
