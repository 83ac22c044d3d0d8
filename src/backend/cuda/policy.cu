#include "backend/cuda/policy.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "backend/cuda/kernels/policy_cache.cuh"
#include "backend/cuda/kernels/policy_map.cuh"
#include "backend/cuda/kernels/policy_pool.cuh"
#include "backend/cuda/kernels/policy_select.cuh"
#include "backend/cuda/launch.h"

namespace flashomni::cuda {
namespace {

constexpr std::size_t kMostSharedBytes = 227 * 1024;

bool is_aligned(ConstTensorView x) {
  const index_t size = size_in_bytes(x.dtype);
  bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis)
    aligned &= x.size(axis) <= 1 || x.stride(axis) * size % 16 == 0;
  return aligned;
}

void check_inputs(const char* operation, const PoolingInputs& in) {
  const auto head_dim = static_cast<int>(in.q.size(3));
  const index_t row_bytes = head_dim * size_in_bytes(in.q.dtype);
  if (row_bytes % 16 != 0 || row_bytes > 512 || head_dim > kMostPooledDims || !is_aligned(in.q) ||
      !is_aligned(in.k)) {
    FO_FAIL(kUnsupported,
            "%s: the cuda backend cannot pool q and k of %s, head_dim %d; it pools rows of up to "
            "512 bytes that begin and end at multiples of 16",
            operation, std::string(dtype_name(in.q.dtype)).c_str(), head_dim);
  }
}

// `more_shared`: what a kernel keeps in shared memory besides rows of the map.
void check_blocks(const char* operation, const PoolingInputs& in, std::size_t more_shared,
                  const char* most) {
  const int kv_blocks = in.kv_grid.num_blocks(), head_dim = static_cast<int>(in.q.size(3));
  if (map_shared_bytes(kManyMapRows, head_dim, padded(kv_blocks)) + more_shared >
      kMostSharedBytes) {
    FO_FAIL(kUnsupported,
            "%s: the cuda backend has no kernel for %d q blocks and %d kv blocks; it has up to "
            "about %s",
            operation, in.q_grid.num_blocks(), kv_blocks, most);
  }
}

PoolInput pool_input(ConstTensorView x, const GridTable& grid, float* means) {
  PoolInput in{};
  in.data = x.data;
  in.batch_stride = x.stride(0);
  in.token_stride = x.stride(1);
  in.head_stride = x.stride(2);
  in.num_heads = static_cast<int>(x.size(2));
  in.grid = grid;
  in.means = means;
  return in;
}

template <typename T>
void launch_pool(const PoolParams& params, bool similarity, int batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(std::max(params.q.num_heads, params.k.num_heads)),
                  static_cast<unsigned>(params.q.grid.num_blocks + params.k.grid.num_blocks),
                  static_cast<unsigned>(batch));
  if (grid.x * grid.y == 0) return;
  const auto kernel = similarity ? pool_kernel<T, true> : pool_kernel<T, false>;
  launch_early(kernel, grid, kPoolThreads, 0, stream, params);
}

void launch_pool(DType dtype, const PoolParams& params, bool similarity, int batch,
                 cudaStream_t stream) {
  switch (dtype) {
    case DType::kBF16: return launch_pool<__nv_bfloat16>(params, similarity, batch, stream);
    case DType::kF16: return launch_pool<__half>(params, similarity, batch, stream);
    default: return launch_pool<float>(params, similarity, batch, stream);
  }
}

// Launches a kernel over the rows of a map, of which there are two; `more_shared` bytes of shared
// memory come after those of the map.
template <typename Params>
void launch_rows(void (*few)(Params), void (*many)(Params), Params params, int batch,
                 std::size_t more_shared, cudaStream_t stream) {
  MapParams& map = params.map;
  if (map.q.num_blocks == 0) return;
  constexpr int kWanted = 160;  // thread blocks; a GPU has 132 multiprocessors
  const auto groups = [&](int rows) { return (map.q.num_blocks + rows - 1) / rows; };
  const int rows =
      groups(kManyMapRows) * map.num_heads * batch < kWanted ? kFewMapRows : kManyMapRows;
  map.splits = map_splits(rows, map.leading);
  map.split_dim = (map.head_dim / 4 + map.splits - 1) / map.splits * 4;
  const auto kernel = rows == kFewMapRows ? few : many;
  const dim3 grid(static_cast<unsigned>(groups(rows)), static_cast<unsigned>(map.num_heads),
                  static_cast<unsigned>(batch));
  const std::size_t shared = map_shared_bytes(rows, map.head_dim, map.leading) + more_shared;
  FO_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
  launch_early(kernel, grid, kMapThreads, shared, stream, params);
}

void download(const float* from, std::size_t count, std::vector<float>& to, cudaStream_t stream) {
  to.resize(count);
  FO_CUDA(cudaMemcpyAsync(to.data(), from, count * sizeof(float), cudaMemcpyDeviceToHost, stream));
}

// Rows of `width` values, one a K head, become one a Q head.
void repeat_heads(int width, int heads_per_kv_head, std::vector<float>& rows) {
  if (heads_per_kv_head == 1) return;
  std::vector<float> repeated;
  for (auto row = rows.begin(); row != rows.end(); row += width) {
    for (int i = 0; i < heads_per_kv_head; ++i) repeated.insert(repeated.end(), row, row + width);
  }
  rows.swap(repeated);
}

}  // namespace

void PooledBlocks::pool(const char* operation, const PoolingInputs& in,
                        const BlockScoreOptions& options, cudaStream_t stream) {
  check_inputs(operation, in);
  grids_.assign(in.q_grid, in.kv_grid, stream);
  const int batch = in.q_grid.batch(), head_dim = static_cast<int>(in.q.size(3));
  const int q_blocks = in.q_grid.num_blocks(), kv_blocks = in.kv_grid.num_blocks();
  const index_t q_heads = batch * in.q.size(2), k_heads = batch * in.k.size(2);
  const int leading = padded(kv_blocks);
  q_means_.reserve(static_cast<std::size_t>(q_heads * q_blocks * head_dim) * sizeof(float) + 1);
  k_means_.reserve(static_cast<std::size_t>(k_heads * head_dim * leading) * sizeof(float) + 1);

  PoolParams params{};
  params.head_dim = head_dim;
  const auto chunks = static_cast<unsigned>(head_dim * size_in_bytes(in.q.dtype) / 16);
  params.log2_row_threads = std::countr_zero(std::bit_ceil(chunks));
  params.q = pool_input(in.q, grids_.q(), q_means_.as<float>());
  params.q.mean_head = static_cast<index_t>(q_blocks) * head_dim;
  params.q.mean_block = head_dim;
  params.q.mean_dim = 1;
  params.k = pool_input(in.k, grids_.kv(), k_means_.as<float>());
  params.k.mean_head = static_cast<index_t>(head_dim) * leading;
  params.k.mean_block = 1;
  params.k.mean_dim = leading;
  if (options.similarity) {
    q_similarity_.reserve(static_cast<std::size_t>(q_heads * q_blocks) * sizeof(float) + 1);
    k_similarity_.reserve(static_cast<std::size_t>(k_heads * kv_blocks) * sizeof(float) + 1);
    params.q.similarity = q_similarity_.as<float>();
    params.k.similarity = k_similarity_.as<float>();
  }

  if (!options.subtract_k_mean) {
    launch_pool(in.q.dtype, params, options.similarity, batch, stream);
  } else {
    head_means_.reserve(static_cast<std::size_t>(k_heads * head_dim) * sizeof(float));
    PoolParams first = params;  // the mean of K comes before the cosines of K less its mean
    if (options.similarity) first.q.grid.num_blocks = 0;
    launch_pool(in.q.dtype, first, false, batch, stream);
    const dim3 grid(static_cast<unsigned>(in.k.size(2)), static_cast<unsigned>(batch));
    launch_early(center_kernel, grid, kPoolThreads, 0, stream, params.k, head_dim,
                 head_means_.as<float>());
    params.k.subtract = head_means_.as<float>();
    if (options.similarity) launch_pool(in.q.dtype, params, true, batch, stream);
  }

  const float scale =
      options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  map_ = {q_means_.as<float>(),
          k_means_.as<float>(),
          grids_.q(),
          grids_.kv(),
          static_cast<int>(in.q.size(2)),
          static_cast<int>(in.q.size(2) / in.k.size(2)),
          head_dim,
          leading,
          scale,
          options.log_count_bias ? in.kv_grid.block() : 0,
          /*splits=*/1,
          /*split_dim=*/head_dim};
}

void BlockScorer::run(const PoolingInputs& in, const BlockScoreOptions& options,
                      BlockScores& scores, cudaStream_t stream) {
  check_blocks("block_scores", in, 0, "3000 kv blocks");
  pooled_.pool("block_scores", in, options, stream);
  const MapParams& map = pooled_.map();
  const int batch = in.q_grid.batch();
  scores = {batch, map.num_heads, map.q.num_blocks, map.kv.num_blocks, {}, {}, {}};
  const std::size_t rows = static_cast<std::size_t>(batch) * map.num_heads;
  const std::size_t q_rows = rows * map.q.num_blocks, k_rows = rows / map.heads_per_kv_head;
  logits_.reserve(q_rows * map.kv.num_blocks * sizeof(float) + 1);
  launch_rows(logits_kernel<kFewMapRows>, logits_kernel<kManyMapRows>,
              LogitsParams{map, logits_.as<float>()}, batch, /*more_shared=*/0, stream);
  download(logits_.as<float>(), q_rows * map.kv.num_blocks, scores.logits, stream);
  if (options.similarity) {
    download(pooled_.q_similarity(), q_rows, scores.q_similarity, stream);
    download(pooled_.k_similarity(), k_rows * map.kv.num_blocks, scores.k_similarity, stream);
  }
  FO_CUDA(cudaStreamSynchronize(stream));
  repeat_heads(map.kv.num_blocks, map.heads_per_kv_head, scores.k_similarity);
}

void SymbolSelector::run(ConstTensorView q, ConstTensorView k, const FlashOmniOptions& options,
                         double ramp, SymbolWords& words, const ScoreViews& scores,
                         cudaStream_t stream) {
  const PoolingInputs in{q, k, words.q_grid, words.kv_grid};
  check_blocks("select_symbols", in,
               cache_shared_bytes(in.q_grid.num_blocks(), in.kv_grid.num_blocks()), "2000 of each");
  pooled_.pool("select_symbols", in,
               {.similarity = options.sim_threshold.has_value(),
                .subtract_k_mean = options.subtract_k_mean,
                .log_count_bias = options.log_count_bias},
               stream);
  const MapParams& map = pooled_.map();
  const int batch = words.q_grid.batch();
  SelectParams params{};
  params.map = map;
  if (options.sim_threshold) {
    params.q_similarity = pooled_.q_similarity();
    params.k_similarity = pooled_.k_similarity();
    params.sim_threshold = *options.sim_threshold;
  }
  params.tau_q = static_cast<float>(options.tau_q * ramp);
  params.tau_kv = static_cast<float>(options.tau_kv * ramp);
  params.keep_text_kv = options.keep_text_kv;
  params.per_layer = options.scope == PolicyScope::kLayer;
  params.cache = words.cache.as<std::uint32_t>();
  params.skip = words.skip.as<std::uint32_t>();
  params.head_words = static_cast<int>(words.cache.size(2));
  params.kv_words = static_cast<int>(words.skip.size(3));
  params.c = scores.c.as<float>();
  params.g = scores.g.as<float>();
  if (params.tau_q > 0 || params.c || params.g) {
    const index_t heads = static_cast<index_t>(batch) * map.num_heads;
    const auto reserve = [&](DeviceBuffer& buffer, index_t width) {
      buffer.reserve(static_cast<std::size_t>(heads * map.q.num_blocks * width) * sizeof(float) +
                     1);
      return buffer.as<float>();
    };
    params.text_rows = reserve(text_rows_, map.leading);
    params.text_columns = reserve(text_columns_, map.kv.num_blocks);
    const std::size_t bytes = static_cast<std::size_t>(heads) * sizeof(SelectCounters);
    if (counters_.reserve(bytes)) {
      FO_CUDA(cudaMemsetAsync(counters_.as<void>(), 0, bytes, stream));
    }
    params.counters = counters_.as<SelectCounters>();
  }
  launch_rows(select_kernel<kFewMapRows>, select_kernel<kManyMapRows>, params, batch,
              cache_shared_bytes(map.q.num_blocks, map.kv.num_blocks), stream);
}

}  // namespace flashomni::cuda
