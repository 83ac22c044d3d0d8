#include "plan/cached_blocks.h"

namespace flashomni {

std::vector<CachedBlock> cached_blocks(const AttentionPlan& plan) {
  const int heads = plan.num_heads, blocks = plan.q_grid.num_blocks();
  std::vector<char> is_live(static_cast<std::size_t>(plan.q_grid.batch()) * heads * blocks, 0);
  for (const AttentionItem& item : plan.items) {
    is_live[(static_cast<std::size_t>(item.batch) * heads + item.head) * blocks + item.q_block] = 1;
  }
  std::vector<CachedBlock> cached;
  for (std::size_t i = 0; i < is_live.size(); ++i) {
    const auto row = static_cast<int>(i / blocks), block = static_cast<int>(i % blocks);
    const Block rows = plan.q_grid.at(row / heads, block);
    if (!is_live[i] && rows.count > 0) cached.push_back({row / heads, row % heads, rows});
  }
  return cached;
}

}  // namespace flashomni
