// cached_blocks.h -- what an attention plan leaves out.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/plan.h"

namespace flashomni {

// Rows of one query block of one head.
struct CachedBlock {
  std::int32_t batch = 0, head = 0;
  Block rows;
  bool operator==(const CachedBlock&) const = default;
};

// The query blocks with valid tokens that `plan` has no item for: by batch, head, block.
std::vector<CachedBlock> cached_blocks(const AttentionPlan& plan);

}  // namespace flashomni
