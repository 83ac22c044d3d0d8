// attention_sm90.cuh -- block-sparse attention with TMA loads and WGMMA (Hopper).
//
//   warpgroup 0     one warp schedules: reads the block's pieces; one loads: Q, and a ring of K
//                   and V tiles gathered from the piece's kv blocks, in the order they are read
//   warpgroups 1-2  consume: 64 query rows each, S = Q K^T, softmax, O += P V, store
//
// One round of a consumer (t counts kv tiles across pieces; the MMAs run asynchronously):
//   issue S(t) = Q K(t)^T, issue O += P(t-1) V(t-1) | wait for S(t) | weights of S(t), first half
//   wait for O | second half | P(t) = weights in 16 bits
// so that the softmax of a warpgroup runs under its own PV product and the other's two products.
// Where tile t begins a piece, the last product of the one before goes first:
//   issue O += P(t-1) V(t-1) | take Q | issue S(t) | wait for O, store it | wait for S(t) | ...
// so that Q is taken under that product, and O stored under S(t). The ring holds the tiles of a
// piece in the order in which they are read: K(0), K(1), V(0), ..., K(n), V(n-1), V(n).
//
// The softmax takes no running maximum: see SoftmaxRows (device/softmax.cuh).
// Design, budgets and measurements: docs/kernels/attention_sm90.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/arrival.cuh"
#include "backend/cuda/device/softmax.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/kernels/attention_reuse.cuh"
#include "backend/cuda/kernels/attention_sm90_config.cuh"
#include "backend/cuda/kernels/attention_sm90_load.cuh"

namespace flashomni::cuda {

// One thread of a consumer warpgroup.
template <typename Kernel>
struct AttentionConsumer {
  using T = typename Kernel::Element;
  using SharedStorage = typename Kernel::SharedStorage;
  static constexpr int kHeadDim = Kernel::kHeadDim;
  static constexpr int kTileQ = Kernel::kTileQ, kTileKv = Kernel::kTileKv;

  const AttentionParams& params;
  SharedStorage& shared;
  int warpgroup;  // 0 or 1
  int thread;     // 0 .. 127
  typename Kernel::Ring ring{};
  std::uint32_t work_phase = 0;
  int own = 0;

  __device__ int lane() const { return thread % 32; }
  __device__ int warp() const { return warpgroup * 4 + thread / 32; }
  __device__ int row_in_tile() const { return warp() * 16 + lane() / 4; }

  // One arrival a warp: the barrier counts 4 * kConsumers.
  __device__ void release(Barrier& empty) {
    if (lane() == 0) empty.arrive();
  }

  // Waits for the next piece and its Q. Returns its number of tiles, -1 at the end.
  __device__ int next_tiles() {
    shared.work_full.wait(work_phase);
    work_phase ^= 1;
    return shared.work.tiles;
  }
  // Takes that piece, its Q to registers. `own` then names it, `own ^ 1` the one before.
  __device__ void take(std::uint32_t (&q)[kHeadDim / 4]) {
    load_q(q);
    own ^= 1;
    const auto* words = reinterpret_cast<const int*>(&shared.work.piece);
    auto* copy = reinterpret_cast<int*>(&shared.own[warp()][own]);
    // One store under a predicate: a branch here would cost the main loop its uniform registers.
    if (lane() < kPieceWords) copy[lane()] = words[lane()];
    __syncwarp();
    release(shared.work_empty);
  }
  __device__ void load_q(std::uint32_t (&q)[kHeadDim / 4]) const {
    const int row = warp() * 16 + lane() % 16;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int chunk = (step % 4 * 2 + lane() / 16) ^ (row & 7);
      load_matrices(q + 4 * step,
                    shared.q + step / 4 * kTileQ * kPanelColumns + row * kPanelColumns + chunk * 8);
    }
  }

  // s = Q K^T of the tile in `slot`.
  __device__ void issue_scores(float (&s)[kTileKv / 2], const std::uint32_t (&q)[kHeadDim / 4],
                               int slot) {
    const std::uint64_t k = wgmma_descriptor(shared.ring[slot]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int bytes = step / 4 * kTileKv * kPanelRowBytes + step % 4 * 32;
      Wgmma<T, kTileKv>::template rs<false>(s, q + 4 * step, k + (bytes >> 4), step > 0);
    }
    wgmma_commit();
  }

  // o (+)= P V of the tile in `slot`.
  __device__ void issue_values(float (&o)[kHeadDim / 2], const std::uint32_t (&p)[kTileKv / 4],
                               int slot, int accumulate) {
    const std::uint64_t v = wgmma_descriptor(shared.ring[slot], kTileKv * kPanelRowBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTileKv / 16; ++step) {
      Wgmma<T, kHeadDim>::template rs<true>(o, p + 4 * step, v + (step * 16 * kPanelRowBytes >> 4),
                                            step > 0 ? 1 : accumulate);
    }
    wgmma_commit();
  }

  __device__ void mask_tile(float (&s)[kTileKv / 2], int slot) const {
    const int column = 2 * (thread % 4);
#pragma unroll
    for (int j = 0; j < kTileKv / 8; ++j) {
      const int valid = shared.valid_keys[slot][j / 2] - 8 * (j % 2) - column;
      if (valid < 1) s[4 * j] = s[4 * j + 2] = -INFINITY;
      if (valid < 2) s[4 * j + 1] = s[4 * j + 3] = -INFINITY;
    }
  }

  __device__ T* out_row(const AttentionPiece& piece, int row) const {
    return static_cast<T*>(params.out) + piece.batch * params.out_batch_stride +
           (piece.row + row) * params.out_row_stride + piece.head * params.out_head_stride;
  }
  __device__ void store_lse(const AttentionPiece& piece, int row, float value) const {
    if (params.lse && thread % 4 == 0 && row < piece.num_rows) {
      params.lse[piece.batch * params.lse_batch_stride + piece.head * params.lse_head_stride +
                 (piece.row + row) * params.lse_row_stride] = value;
    }
  }

  // Writes o / sum; every lane of a quad stores 16-byte chunks.
  __device__ void store_rows(const AttentionPiece& piece, const float (&o)[kHeadDim / 2],
                             const SoftmaxRows<T>& rows) const {
    // Both sums first: shuffles after the stores would queue behind them.
    const float sum[2] = {quad_sum(rows.sum[0]), quad_sum(rows.sum[1])};
    const int quad_lane = thread % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_in_tile() + 8 * half;
      const float factor = __fdividef(1.0f, sum[half]);
      auto* chunks = reinterpret_cast<uint4*>(out_row(piece, row)) + quad_lane;
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i) {
        std::uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = 4 * (4 * i + j) + 2 * half;
          words[j] = pack<T>(o[at] * factor, o[at + 1] * factor);
        }
        transpose_quad(words, quad_lane);
        if (row < piece.num_rows) chunks[4 * i] = uint4{words[0], words[1], words[2], words[3]};
      }
      constexpr float kLn2 = 0.6931471805599453f;
      store_lse(piece, row, kLn2 * (rows.reference[half] + __log2f(sum[half])));
    }
  }

  // Leaves this part's result in memory; the last warp to do so for its rows merges all parts,
  // in order, so that results do not depend on who is last. False if others are still to come.
  // Part 0 is read beside the statistics of all, because each read is a way to L2 and back.
  __device__ bool merge_parts(const AttentionPiece& piece, float (&o)[kHeadDim / 2],
                              SoftmaxRows<T>& rows) const {
    auto* parts = static_cast<AttentionPartial<kHeadDim>*>(params.partials) + piece.slot;
    auto& mine = parts[piece.part];
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      mine.o[warp()][i][lane()] = float4{o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]};
    }
    mine.rows[warp()][lane()] =
        float4{rows.reference[0], rows.reference[1], rows.sum[0], rows.sum[1]};
    __syncwarp();
    int* done = params.counters + piece.slot * 8 + warp();
    int before = 0;
    if (lane() == 0) before = count_arrival(done);
    if (__shfl_sync(~0u, before, 0) != piece.num_parts - 1) return false;
    if (lane() == 0) *done = 0;
    __syncwarp();  // what lane 0 has acquired

#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float4 value = __ldcg(&parts[0].o[warp()][i][lane()]);
      o[4 * i] = value.x;
      o[4 * i + 1] = value.y;
      o[4 * i + 2] = value.z;
      o[4 * i + 3] = value.w;
    }
    const float4 first = __ldcg(&parts[0].rows[warp()][lane()]);
    rows.reference[0] = first.x;
    rows.reference[1] = first.y;
    constexpr int kAtOnce = 3;
    for (int part = 1; part < piece.num_parts; part += kAtOnce) {
      float4 others[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        others[i] = __ldcg(&parts[min(part + i, piece.num_parts - 1)].rows[warp()][lane()]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        rows.reference[0] = fmaxf(rows.reference[0], others[i].x);
        rows.reference[1] = fmaxf(rows.reference[1], others[i].y);
      }
    }
    const float first_weight[2] = {exp2_approx(first.x - rows.reference[0]),
                                   exp2_approx(first.y - rows.reference[1])};
    // Products plus 0, as sums that begin with 0 give: never -0.
    rows.sum[0] = fmaf(first_weight[0], first.z, 0.0f);
    rows.sum[1] = fmaf(first_weight[1], first.w, 0.0f);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) o[i] = fmaf(first_weight[i / 2 % 2], o[i], 0.0f);
    for (int part = 1; part < piece.num_parts; ++part) {
      const float4 other = __ldcg(&parts[part].rows[warp()][lane()]);
      const float weight[2] = {exp2_approx(other.x - rows.reference[0]),
                               exp2_approx(other.y - rows.reference[1])};
      rows.sum[0] += weight[0] * other.z;
      rows.sum[1] += weight[1] * other.w;
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
        const float4 value = __ldcg(&parts[part].o[warp()][i][lane()]);
        o[4 * i] += weight[0] * value.x;
        o[4 * i + 1] += weight[0] * value.y;
        o[4 * i + 2] += weight[1] * value.z;
        o[4 * i + 3] += weight[1] * value.w;
      }
    }
    return true;
  }

  __device__ void store(const AttentionPiece& piece, float (&o)[kHeadDim / 2],
                        SoftmaxRows<T> rows) const {
    if (piece.num_parts > 1 && !merge_parts(piece, o, rows)) return;
    store_rows(piece, o, rows);
  }

  __device__ void pack_scores(const float (&s)[kTileKv / 2], std::uint32_t (&p)[kTileKv / 4]) {
#pragma unroll
    for (int i = 0; i < kTileKv / 4; ++i) p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  }

  // A piece's first tile: the reference is the maximum of a row.
  __device__ void begin_rows(const float (&s)[kTileKv / 2], SoftmaxRows<T>& rows) const {
    float top[2];
    row_maxima(s, params.scale_log2, top);
    rows.begin(top);
  }

  // The second pass over a tile whose weights left the range.
  __device__ void redo_tile(float (&s)[kTileKv / 2], const std::uint32_t (&q)[kHeadDim / 4],
                            int slot, SoftmaxRows<T>& rows, float (&tile_sum)[2],
                            float (&o)[kHeadDim / 2]) {
    issue_scores(s, q, slot);
    wgmma_wait<0>();
    wgmma_hold(s);
    if (shared.has_mask[slot]) mask_tile(s, slot);
    float top[2], correction[2];
    row_maxima(s, params.scale_log2, top);
    rows.move(top, correction);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= correction[i / 2 % 2];
    tile_sum[0] = tile_sum[1] = 0;
    rows.template exponentiate<0, kTileKv / 2>(s, params.scale_log2, tile_sum);
  }

  __device__ void run() {
    constexpr int kWeights = kTileKv / 2;
    float o[kHeadDim / 2], s[kWeights];
    std::uint32_t p[kTileKv / 4], q[kHeadDim / 4];
    SoftmaxRows<T> rows;

    int left = next_tiles();
    if (left < 0) return;
    take(q);
    shared.full[ring.slot].wait(ring.phase);
    issue_scores(s, q, ring.slot);
    wgmma_wait<0>();
    wgmma_hold(s);
    wgmma_hold(q);
    if (shared.has_mask[ring.slot]) mask_tile(s, ring.slot);
    release(shared.empty[ring.slot]);
    ring.advance();
    begin_rows(s, rows);
    rows.template exponentiate<0, kWeights>(s, params.scale_log2, rows.sum);
    pack_scores(s, p);
    int accumulate = 0;

    while (true) {
      const bool piece_ends = --left == 0;
      if (piece_ends) {
        left = next_tiles();
        if (left < 0) break;
      }
      const auto first = ring;
      ring.advance();
      const auto second = ring;
      ring.advance();

      float tile_sum[2] = {0, 0};
      if (piece_ends) {
        const auto v = first, k = second;
        shared.full[v.slot].wait(v.phase);
        issue_values(o, p, v.slot, accumulate);
        take(q);
        shared.full[k.slot].wait(k.phase);
        const bool has_mask = shared.has_mask[k.slot];
        issue_scores(s, q, k.slot);
        wgmma_wait<1>();
        wgmma_hold(o);
        wgmma_hold(p);
        release(shared.empty[v.slot]);
        store(shared.own[warp()][own ^ 1], o, rows);
        wgmma_wait<0>();
        wgmma_hold(s);
        wgmma_hold(q);
        if (has_mask) [[unlikely]]
          mask_tile(s, k.slot);
        begin_rows(s, rows);
        rows.template exponentiate<0, kWeights / 2>(s, params.scale_log2, tile_sum);
      } else {
        const auto v = second, k = first;
        shared.full[k.slot].wait(k.phase);
        const bool has_mask = shared.has_mask[k.slot];
        issue_scores(s, q, k.slot);
        shared.full[v.slot].wait(v.phase);
        issue_values(o, p, v.slot, accumulate);
        wgmma_wait<1>();
        wgmma_hold(s);
        wgmma_hold(q);
        // The first half stands in both branches because ptxas would move the wait up in a common
        // block, before the exponentials that are to run under the MMA.
        if (has_mask) [[unlikely]] {
          mask_tile(s, k.slot);
          rows.template exponentiate<0, kWeights / 2>(s, params.scale_log2, tile_sum);
        } else {
          rows.template exponentiate<0, kWeights / 2>(s, params.scale_log2, tile_sum);
        }
        wgmma_wait<0>();
        release(shared.empty[v.slot]);
        wgmma_hold(o);
        wgmma_hold(p);
      }
      const int k_slot = piece_ends ? second.slot : first.slot;
      rows.template exponentiate<kWeights / 2, kWeights>(s, params.scale_log2, tile_sum);
      pack_scores(s, p);
      // A warpgroup's decision, because it multiplies together.
      if (named_barrier_any(1 + warpgroup, 128, rows.out_of_range(tile_sum))) [[unlikely]] {
        redo_tile(s, q, k_slot, rows, tile_sum, o);
        pack_scores(s, p);
      }
      release(shared.empty[k_slot]);
      rows.sum[0] += tile_sum[0];
      rows.sum[1] += tile_sum[1];
      accumulate = !piece_ends;
    }

    shared.full[ring.slot].wait(ring.phase);
    issue_values(o, p, ring.slot, accumulate);
    wgmma_wait<0>();
    wgmma_hold(o);
    store(shared.own[warp()][own], o, rows);
  }
};

template <typename Kernel>
__device__ void init_barriers(typename Kernel::SharedStorage& shared) {
  constexpr int kConsumerWarps = 4 * Kernel::kConsumers;
  for (int i = 0; i < Kernel::kAhead; ++i) {
    shared.ahead_full[i].init(1);
    shared.ahead_empty[i].init(1);
  }
  shared.work_full.init(1);
  shared.work_empty.init(kConsumerWarps);
  for (int i = 0; i < Kernel::kSlots; ++i) {
    shared.full[i].init(1);
    shared.empty[i].init(kConsumerWarps);
  }
  shared.next_reuse = 0;
  fence_barrier_init();
}
__device__ inline void prefetch_tensor_maps(const AttentionParams& params) {
  prefetch_tensor_map(&params.q_map);
  if (params.kv_maps) return;  // which a kernel may still be writing
  prefetch_tensor_map(&params.k_map);
  prefetch_tensor_map(&params.v_map);
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    attention_sm90_kernel(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Kernel::SharedStorage*>(shared_bytes);
  if (threadIdx.x == 0) init_barriers<Kernel>(shared);
  if (threadIdx.x == 64) prefetch_tensor_maps(params);
  release_next_kernel();
  await_previous_kernel();
  using Scheduler = AttentionScheduler<Kernel>;
  // Under way while the warps meet.
  const int start = threadIdx.x / 32 == 1 ? Scheduler::read_start(params, threadIdx.x % 32) : 0;
  __syncthreads();

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    release_registers<Kernel::kProducerRegisters>();
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) AttentionLoader<Kernel>{params, shared, lane}.run();
    if (threadIdx.x / 32 == 1) Scheduler{params, shared, lane}.run(start);
    if (threadIdx.x >= 64)
      AttentionReuser<Kernel>{params, lane}.template run<2>(&shared.next_reuse);
  } else {
    claim_registers<Kernel::kConsumerRegisters>();
    const int thread = threadIdx.x % 128;
    AttentionConsumer<Kernel>{params, shared, warpgroup - 1, thread}.run();
    AttentionReuser<Kernel>{params, thread % 32}.template run<8>(&shared.next_reuse);
  }
}

}  // namespace flashomni::cuda
