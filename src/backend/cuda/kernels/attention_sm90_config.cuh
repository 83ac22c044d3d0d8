// attention_sm90_config.cuh -- tile sizes, register split and shared memory of attention_sm90.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/kernels/attention_params.h"

namespace flashomni::cuda {

template <typename T, int kHeadDim_>
struct AttentionSm90 {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kTileQ = 128, kTileKv = kAttentionTileKv;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(128 * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);

  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kQBytes = kTileQ * kHeadDim * 2;
  static constexpr int kTileBytes = kTileKv * kHeadDim * 2;
  // Q passes through shared memory into registers and is free again, so one buffer serves; the rest
  // of 227 KiB is tiles: three K, V pairs at head_dim 128.
  static constexpr int kSharedBytes = 226 * 1024;
  static constexpr int kFitting = (kSharedBytes - kQBytes) / kTileBytes;
  static constexpr int kSlots = kFitting < 8 ? kFitting : 8;
  static_assert(kSlots >= 6);
  using Ring = RingPosition<kSlots>;

  static constexpr int kMaskGroup = 16;  // keys that share one count of valid keys
  static constexpr int kMaskGroups = kTileKv / kMaskGroup;

  // A piece as warps hand it on. tiles == -1: there are no more pieces.
  struct Work {
    AttentionPiece piece;
    int tiles;
    AttentionGroup first[kMostGroups];  // groups of the first tile
  };
  static constexpr int kAhead = 3;  // pieces that the scheduler is ahead of the loads
  using WorkRing = RingPosition<kAhead>;

  struct SharedStorage {
    alignas(1024) T q[kTileQ * kHeadDim];
    alignas(1024) T ring[kSlots][kTileKv * kHeadDim];
    alignas(16) std::uint8_t valid_keys[kSlots][kMaskGroups];  // of each mask group, if has_mask
    int has_mask[kSlots];
    Work ahead[kAhead];
    Work work;                              // of the consumers, its query rows in `q`
    AttentionPiece own[4 * kConsumers][2];  // each consumer warp's piece and the one before
    Barrier ahead_full[kAhead], ahead_empty[kAhead];
    Barrier work_full, work_empty;
    int next_reuse;  // parts of cached blocks that are taken
    Barrier full[kSlots], empty[kSlots];
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
};

}  // namespace flashomni::cuda
