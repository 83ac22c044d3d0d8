#include "backend/cuda/attention_lists.h"

#include <algorithm>
#include <vector>

#include "backend/cuda/kernels/attention_deal.cuh"
#include "backend/cuda/launch.h"

namespace flashomni::cuda {
namespace {

constexpr std::size_t kMostSharedBytes = 227 * 1024;
constexpr int kWriterBlocks = 64;

int divide_up(int a, int b) { return (a + b - 1) / b; }

DealOptions deal_options(const CutOptions& options, int block_kv) {
  DealOptions deal{};
  deal.num_sms = options.num_sms;
  deal.blocks_per_unit = std::max(1, kAttentionTileKv / block_kv);
  deal.tiles_per_unit = std::max(1, block_kv / kAttentionTileKv);
  deal.piece_cost = options.piece_cost;
  deal.smallest_part = options.smallest_part;
  deal.smallest_units = divide_up(options.smallest_part, deal.tiles_per_unit);
  deal.most_parts = options.most_parts;
  deal.most_cuts = options.num_sms;
  deal.sorted_per_sm = options.sorted_per_sm;
  return deal;
}

// Tiles that one multiprocessor could have to do, by which its time is kept in 24 bits.
void check_size(const SymbolWords& words, const DealOptions& options) {
  const std::int64_t rows =
      static_cast<std::int64_t>(words.q_grid.batch()) * words.num_heads * words.q_grid.num_blocks();
  const std::int64_t row_cost =
      static_cast<std::int64_t>(words.kv_grid.num_blocks()) * options.tiles_per_unit +
      options.piece_cost;
  const std::int64_t longest = rows * row_cost / options.num_sms + 2 * row_cost;
  if (options.num_sms > kMostMultiprocessors || options.sorted_per_sm > kMostSortedPerSm ||
      longest >= 1 << 24 || rows * words.kv_grid.num_blocks() > INT32_MAX ||
      list_shared_bytes(words.q_grid.num_blocks()) > kMostSharedBytes) {
    FO_FAIL(kUnsupported,
            "build_attention_plan_from: the cuda backend has no kernel for %lld rows of %d kv "
            "blocks on %d multiprocessors",
            static_cast<long long>(rows), words.kv_grid.num_blocks(), options.num_sms);
  }
}

template <typename T>
std::vector<T> download(const void* from, std::size_t count, cudaStream_t stream) {
  std::vector<T> to(count);
  FO_CUDA(cudaMemcpyAsync(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
  FO_CUDA(cudaStreamSynchronize(stream));
  return to;
}

}  // namespace

int AttentionListBuilder::build(const SymbolWords& words, const CutOptions& options,
                                AttentionLists& lists, cudaStream_t stream) {
  grids_.assign(words.q_grid, words.kv_grid, stream);
  AttentionListsParams params{};
  params.options = deal_options(options, words.kv_grid.block());
  check_size(words, params.options);
  params.cache = words.cache.as<std::uint32_t>();
  params.skip = words.skip.as<std::uint32_t>();
  params.head_words = static_cast<int>(words.cache.size(2));
  params.kv_words = static_cast<int>(words.skip.size(3));
  params.batch = words.q_grid.batch();
  params.num_heads = words.num_heads;
  params.q = grids_.q();
  params.kv = grids_.kv();

  const std::size_t groups = static_cast<std::size_t>(params.batch) * params.num_heads;
  const std::size_t rows = groups * params.q.num_blocks;
  const std::size_t pieces = rows + params.options.most_cuts;
  params.counts = counts_.reserve<int>(rows);
  params.totals = totals_.reserve<GroupTotals>(groups);
  params.items = items_.reserve<ListItem>(rows);
  params.parts = parts_.reserve<DealtPart>(pieces);
  params.num_parts = num_parts_.reserve<std::int32_t>(1);
  params.parts_of = parts_of_.reserve<std::int16_t>(rows);
  params.slots = slots_.reserve<std::int32_t>(rows);
  params.first_of_sm = lists.first_of_sm.reserve<std::int32_t>(options.num_sms + 1);
  params.pieces = lists.pieces.reserve<AttentionPiece>(pieces);
  params.starts = lists.starts.reserve<AttentionStart>(options.num_sms);
  params.kv_blocks = lists.kv_blocks.reserve<std::int32_t>(rows * params.kv.num_blocks);
  params.kv_table =
      lists.kv_table.reserve<int2>(static_cast<std::size_t>(params.batch) * params.kv.num_blocks);
  params.cached = lists.cached.reserve<CachedRows>(rows);
  params_ = params;

  const dim3 grid(static_cast<unsigned>(params.num_heads), static_cast<unsigned>(params.batch));
  launch_early(count_rows_kernel, grid, kListThreads, 0, stream, params);
  const std::size_t shared = list_shared_bytes(params.q.num_blocks);
  FO_CUDA(cudaFuncSetAttribute(list_items_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
  launch_early(list_items_kernel, grid, kItemThreads, shared, stream, params);
  launch_early(deal_kernel, 1, kDealThreads, 0, stream, params);
  launch_early(write_pieces_kernel, kWriterBlocks, kListThreads, 0, stream, params);
  return 2 * params.options.most_cuts;
}

void AttentionListBuilder::read_back(const AttentionLists& lists, AttentionPlan& plan,
                                     Pieces& pieces, cudaStream_t stream) const {
  const auto totals = download<GroupTotals>(
      params_.totals, static_cast<std::size_t>(params_.batch) * params_.num_heads, stream);
  std::size_t num_items = 0, num_pairs = 0;
  for (const GroupTotals& group : totals) {
    num_items += group.items;
    num_pairs += group.pairs;
  }
  plan.items.clear();
  for (const ListItem& item : download<ListItem>(params_.items, num_items, stream)) {
    plan.items.push_back({item.batch, item.head, item.q_block, item.first_kv, item.num_kv});
  }
  plan.kv_blocks = download<std::int32_t>(lists.kv_blocks.as<void>(), num_pairs, stream);
  pieces.first_of_sm =
      download<std::int32_t>(lists.first_of_sm.as<void>(), params_.options.num_sms + 1, stream);
  pieces.list =
      download<AttentionPiece>(lists.pieces.as<void>(), pieces.first_of_sm.back(), stream);
  pieces.starts =
      download<AttentionStart>(lists.starts.as<void>(), params_.options.num_sms, stream);
  pieces.num_slots = 0;
  for (const std::int16_t parts : download<std::int16_t>(params_.parts_of, num_items, stream)) {
    if (parts > 1) pieces.num_slots += parts;
  }
}

}  // namespace flashomni::cuda
