#include <algorithm>

#include "flashomni/plan.h"

#include "core/check.h"
#include "symbols/layout.h"

namespace flashomni {
namespace {

int count_valid(const BlockGrid& grid, int item) {
  int count = 0;
  for (int index = 0; index < grid.num_blocks(); ++index) count += grid.at(item, index).count > 0;
  return count;
}

// Room for the all-live plan, so that later symbols of the same grids allocate nothing.
void reserve_all_live(const SparseSymbols& symbols, AttentionPlan& plan) {
  std::size_t items = 0, pairs = 0;
  for (int item = 0; item < symbols.q_grid().batch(); ++item) {
    const std::size_t rows =
        static_cast<std::size_t>(symbols.num_heads()) * count_valid(symbols.q_grid(), item);
    items += rows;
    pairs += rows * count_valid(symbols.kv_grid(), item);
  }
  plan.items.reserve(items);
  plan.kv_blocks.reserve(pairs);
}

bool longer_first(const AttentionItem& a, const AttentionItem& b) {
  return a.num_kv != b.num_kv ? a.num_kv > b.num_kv : a.q_block < b.q_block;
}

}  // namespace

void build_attention_plan(const SparseSymbols& symbols, AttentionPlan& plan) {
  plan.q_grid = symbols.q_grid();
  plan.kv_grid = symbols.kv_grid();
  plan.num_heads = symbols.num_heads();
  plan.stats = symbols.stats();
  plan.lists_on_device = false;
  plan.items.clear();
  plan.kv_blocks.clear();
  plan.backend_lists = no_backend_lists();
  reserve_all_live(symbols, plan);
  for (int item = 0; item < plan.q_grid.batch(); ++item) {
    for (int head = 0; head < plan.num_heads; ++head) {
      const auto group = plan.items.size();
      for (int q = 0; q < plan.q_grid.num_blocks(); ++q) {
        if (!symbols.is_live(item, head, q)) continue;
        const auto first = static_cast<std::int32_t>(plan.kv_blocks.size());
        for_each_set_bit(symbols.skip_row(item, head, q),
                         [&](int kv) { plan.kv_blocks.push_back(kv); });
        const auto end = static_cast<std::int32_t>(plan.kv_blocks.size());
        plan.items.push_back({item, head, q, first, end - first});
      }
      std::sort(plan.items.begin() + group, plan.items.end(), longer_first);
    }
  }
}

std::span<const std::int32_t> GemmPlan::cached_heads(std::size_t row_block) const {
  FO_CHECK(!lists_on_device,
           "cached_heads: plan has its lists on a device, expected one with them "
           "on the host");
  return {head_lists.data() + row_block * num_heads,
          static_cast<std::size_t>(row_blocks[row_block].num_cached)};
}

std::span<const std::int32_t> GemmPlan::live_heads(std::size_t row_block) const {
  FO_CHECK(!lists_on_device,
           "live_heads: plan has its lists on a device, expected one with them "
           "on the host");
  const std::int32_t num_cached = row_blocks[row_block].num_cached;
  return {head_lists.data() + row_block * num_heads + num_cached,
          static_cast<std::size_t>(num_heads - num_cached)};
}

void build_gemm_plan(const SparseSymbols& symbols, int first_token, int num_tokens,
                     const SparseSymbols* previous, GemmPlan& plan) {
  const BlockGrid& grid = symbols.q_grid();
  FO_CHECK(num_tokens >= 0, "build_gemm_plan: num_tokens is %d, must not be negative", num_tokens);
  FO_CHECK(
      !previous || (previous->q_grid() == grid && previous->num_heads() == symbols.num_heads()),
      "build_gemm_plan: the previous symbols have another q grid or number of heads");
  const int first_block = grid.block_starting_at(first_token);
  const int end_block = grid.block_starting_at(first_token + num_tokens);

  plan.num_heads = symbols.num_heads();
  plan.batch = grid.batch();
  plan.num_rows = num_tokens;
  plan.num_q_blocks = grid.num_blocks();
  plan.live_rows = plan.total_rows = 0;
  plan.lists_on_device = false;
  plan.row_blocks.clear();
  plan.head_lists.clear();
  plan.backend_lists = no_backend_lists();
  const auto capacity = static_cast<std::size_t>(grid.batch()) * (end_block - first_block);
  plan.row_blocks.reserve(capacity);
  plan.head_lists.reserve(capacity * plan.num_heads);

  for (int item = 0; item < grid.batch(); ++item) {
    for (int q = first_block; q < end_block; ++q) {
      const Block block = grid.at(item, q);
      if (block.count == 0) continue;
      const auto live = symbols.cache_row(item, q);
      const std::size_t list = plan.head_lists.size();
      for (int head = 0; head < plan.num_heads; ++head) {
        if (!test_bit(live, head)) plan.head_lists.push_back(head);
      }
      const auto num_cached = static_cast<std::int32_t>(plan.head_lists.size() - list);
      for_each_set_bit(live, [&](int head) { plan.head_lists.push_back(head); });
      const bool same = previous && std::ranges::equal(live, previous->cache_row(item, q));
      plan.row_blocks.push_back(
          {item, q, block.start - first_token, block.count, num_cached, same});
      plan.live_rows += static_cast<std::int64_t>(block.count) * (plan.num_heads - num_cached);
      plan.total_rows += static_cast<std::int64_t>(block.count) * plan.num_heads;
    }
  }
}

}  // namespace flashomni
