#include "backend/cuda/gemm_lists.h"

#include <algorithm>

#include "backend/cuda/kernels/gemm_lists.cuh"
#include "backend/cuda/launch.h"
#include "backend/cuda/tiles.h"

namespace flashomni::cuda {
namespace {

constexpr std::size_t kMostSharedBytes = 226 * 1024;  // besides a little that is not dynamic

int divide_up(int a, int b) { return (a + b - 1) / b; }

// Room for tiles that the device will count.
template <typename Tile>
Tile* reserve_counted(TileList& list, int most_tiles) {
  list.num_tiles = most_tiles;
  list.is_counted = true;
  list.count.reserve<std::int32_t>(1);
  return list.tiles.reserve<Tile>(most_tiles);
}

}  // namespace

void GemmListBuilder::set_shape(const SymbolWords& words, int first_token, int num_tokens,
                                cudaStream_t stream) {
  if (shape_.num_heads == words.num_heads && shape_.num_rows == num_tokens &&
      first_token_ == first_token && q_grid_ == words.q_grid) {
    return;
  }
  shape_.num_heads = 0;  // until it is done
  GemmPlan shape;
  build_gemm_plan(SparseSymbols(words.q_grid, words.kv_grid, words.num_heads), first_token,
                  num_tokens, nullptr, shape);
  std::vector<ListRow> rows;
  for (const RowBlock& block : shape.row_blocks) {
    rows.push_back({block.batch, block.q_block, block.row, block.num_rows, 0, 0});
  }
  params_.rows = rows_.reserve<ListRow>(rows.size());
  FO_CUDA(cudaMemcpyAsync(params_.rows, rows.data(), rows.size() * sizeof(ListRow),
                          cudaMemcpyHostToDevice, stream));
  shape.head_lists = {};
  shape.live_rows = 0;
  q_grid_ = words.q_grid;
  first_token_ = first_token;
  shape_ = std::move(shape);
}

void GemmListBuilder::build(const SymbolWords& words, int first_token, int num_tokens,
                            const SymbolWords* previous, DeviceBuffer& heads, cudaStream_t stream) {
  FO_CHECK(
      !previous || (previous->q_grid == words.q_grid && previous->num_heads == words.num_heads),
      "build_gemm_plan: the previous symbols have another q grid or number of heads");
  set_shape(words, first_token, num_tokens, stream);
  params_.cache = words.cache.as<std::uint32_t>();
  params_.previous = previous ? previous->cache.as<std::uint32_t>() : nullptr;
  params_.num_q_blocks = shape_.num_q_blocks;
  params_.num_heads = shape_.num_heads;
  params_.head_words = static_cast<int>(words.cache.size(2));
  params_.num_row_blocks = static_cast<int>(shape_.row_blocks.size());
  params_.live = live_.reserve<std::uint32_t>(shape_.row_blocks.size() * params_.head_words);
  params_.heads = heads.reserve<std::int32_t>(shape_.row_blocks.size() * shape_.num_heads);
  if (params_.num_row_blocks == 0) return;
  launch_early(list_heads_kernel, divide_up(params_.num_row_blocks, kHeadListWarps),
               kHeadListThreads, 0, stream, params_);
}

void GemmListBuilder::make_head_tiles(int num_clusters, TileList& list, cudaStream_t stream) const {
  const std::size_t shared = head_tiles_shared_bytes(params_.num_heads, params_.num_row_blocks);
  if (params_.num_heads > kTileListThreads || shared > kMostSharedBytes) {
    FO_FAIL(kUnsupported,
            "gemm_q: the cuda backend makes no tiles on the device for %d heads of %d row blocks",
            params_.num_heads, params_.num_row_blocks);
  }
  // Those of four row blocks, what is left of each head, and what a cut last round has more.
  const int most =
      params_.num_heads * params_.num_row_blocks / 4 + 2 * params_.num_heads + 3 * num_clusters;
  auto* tiles = reserve_counted<HeadTile>(list, most);
  FO_CUDA(cudaFuncSetAttribute(head_tiles_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
  launch_early(head_tiles_kernel, std::max(1, divide_up(params_.num_row_blocks, kTileListWarps)),
               kTileListThreads, static_cast<int>(shared), stream, params_, num_clusters, tiles,
               list.count.as<std::int32_t>());
}

void GemmListBuilder::make_row_tiles(int heads_per_tile, TileList& list,
                                     cudaStream_t stream) const {
  const int most = params_.num_row_blocks * divide_up(params_.num_heads, heads_per_tile);
  auto* tiles = reserve_counted<GemmTile>(list, most);
  launch_early(row_tiles_kernel, 1, kTileListThreads, 0, stream, params_, heads_per_tile, tiles,
               list.count.as<std::int32_t>());
}

void GemmListBuilder::make_column_tiles(int out_features, int num_clusters, TileList& list,
                                        cudaStream_t stream) const {
  ColumnTilesParams params{};
  params.out_features = out_features;
  params.columns = divide_up(out_features, 2 * kWideTile);
  params.narrow_column = out_features - (params.columns - 1) * 2 * kWideTile <= kWideTile;
  const int num_tiles = params_.num_row_blocks * params.columns;
  params.wide_tiles = count_wide_tiles(num_tiles, num_clusters);
  const int narrow = num_tiles / params.columns - params.wide_tiles / params.columns;
  list.num_tiles = 2 * num_tiles - params.wide_tiles - (params.narrow_column ? narrow : 0);
  list.is_counted = false;
  params.tiles = list.tiles.reserve<GemmTile>(list.num_tiles);
  if (num_tiles == 0) return;
  launch_early(column_tiles_kernel, divide_up(params_.num_row_blocks, kHeadListWarps),
               kHeadListThreads, 0, stream, params_, params);
}

void GemmListBuilder::read_back(GemmPlan& plan, cudaStream_t stream) const {
  std::vector<ListRow> rows(shape_.row_blocks.size());
  plan.head_lists.resize(rows.size() * shape_.num_heads);
  FO_CUDA(cudaMemcpyAsync(rows.data(), params_.rows, rows.size() * sizeof(ListRow),
                          cudaMemcpyDeviceToHost, stream));
  FO_CUDA(cudaMemcpyAsync(plan.head_lists.data(), params_.heads,
                          plan.head_lists.size() * sizeof(std::int32_t), cudaMemcpyDeviceToHost,
                          stream));
  FO_CUDA(cudaStreamSynchronize(stream));
  plan.row_blocks.clear();
  for (const ListRow& row : rows) {
    plan.row_blocks.push_back(
        {row.batch, row.q_block, row.row, row.num_rows, row.num_cached, row.same_as_previous != 0});
  }
}

}  // namespace flashomni::cuda
