#include "backend/cuda/gemm.h"

#include <algorithm>
#include <utility>

#include "backend/cuda/device/barrier.cuh"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/tiles.h"

namespace flashomni::cuda {
namespace {

constexpr int kTileM = 128, kSlice = 64;

int divide_up(index_t a, index_t b) { return static_cast<int>((a + b - 1) / b); }

GemmKernel choose_kernel(const char* operation, const PackedWeight& weight, GemmKind kind,
                         int head_dim, DType term, const LaunchTarget& target) {
  const auto kernel = find_gemm_kernel(target.arch, weight.dtype, kind, head_dim, term);
  if (!kernel) {
    FO_FAIL(kUnsupported,
            "%s: the cuda backend has no kernel for %s, head_dim %d on compute capability %d.%d; "
            "it has bf16 and f16, head_dim 64 and 128, on 9.0",
            operation, std::string(dtype_name(weight.dtype)).c_str(), head_dim, target.arch / 10,
            target.arch % 10);
  }
  // TMA reads rows whose pitch is a multiple of 16 bytes.
  if (weight.in_features % 8 != 0 || weight.out_features % 8 != 0) {
    FO_FAIL(
        kUnsupported,
        "%s: the cuda backend has no kernel for a weight of %lld x %lld; both must be multiples "
        "of 8",
        operation, static_cast<long long>(weight.out_features),
        static_cast<long long>(weight.in_features));
  }
  return *kernel;
}

// [batch, rows, columns], boxes of `rows`.
CUtensorMap matrix_map(ConstTensorView x, int rows) {
  return make_tensor_map(
      {x.data, x.dtype, {x.size(2), x.size(1), x.size(0)}, {1, x.stride(1), x.stride(0)}, 3}, 1,
      rows);
}
// [rows, columns] as one item of a batch.
CUtensorMap single_map(ConstTensorView x, int rows) {
  return make_tensor_map(
      {x.data, x.dtype, {x.size(1), x.size(0), 1}, {1, x.stride(0), x.stride(0) * x.size(0)}, 3}, 1,
      rows);
}
CUtensorMap weight_map(const PackedWeight& weight, int rows) {
  const ConstTensorView w = weight.storage;
  return make_tensor_map({w.data, w.dtype, {w.size(1), w.size(0)}, {1, w.stride(0)}, 2}, 1, rows);
}

void check_row_blocks(const char* operation, const GemmPlan& plan) {
  for (const RowBlock& block : plan.row_blocks) {
    if (block.num_rows > kTileM) {
      FO_FAIL(kUnsupported,
              "%s: the cuda backend has no kernel for blocks of %d rows; it has up to %d",
              operation, block.num_rows, kTileM);
    }
  }
}

void launch(const GemmKernel& kernel, const GemmParams& params, const LaunchTarget& target) {
  if (params.num_tiles == 0) return;
  FO_CUDA(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kernel.shared_bytes));
  const int grid = 2 * std::min(target.num_sms / 2, params.num_tiles);  // clusters of two
  launch_early(kernel.function, grid, kernel.threads, kernel.shared_bytes, target.stream, params);
}

template <typename Tile>
void upload_tiles(const std::vector<Tile>& tiles, TileList& list, cudaStream_t stream) {
  upload(tiles, list.tiles, stream);
  list.num_tiles = static_cast<int>(tiles.size());
  list.is_counted = false;
}

DType term_type(const BiasCacheView& cache, const PackedWeight& weight) {
  return cache.order >= 0 ? cache.terms[0].dtype : weight.dtype;
}

// valid_order grows where the cached heads stayed, up to `order`; elsewhere it starts again.
__global__ void advance_valid_order(const GemmTile* tiles, int num_tiles, int num_q_blocks,
                                    int order, std::uint8_t* valid_order) {
  release_next_kernel();
  await_previous_kernel();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= num_tiles || tiles[i].column != 0) return;
  std::uint8_t& valid = valid_order[tiles[i].batch * num_q_blocks + tiles[i].q_block];
  valid = tiles[i].same_heads ? min(valid + 1, order) : 0;
}

}  // namespace

void DeviceGemmPlan::reset() {
  head_tiles_.made_for = output_tiles_.made_for = 0;
  has_heads_ = false;
}

void DeviceGemmPlan::assign(const SymbolWords& words, int first_token, int num_tokens,
                            const SymbolWords* previous, GemmPlan& plan,
                            const LaunchTarget& target) {
  builder_.build(words, first_token, num_tokens, previous, heads_, target.stream);
  has_heads_ = true;
  const GemmPlan& shape = builder_.shape();
  plan.num_heads = shape.num_heads;
  plan.batch = shape.batch;
  plan.num_rows = shape.num_rows;
  plan.num_q_blocks = shape.num_q_blocks;
  plan.row_blocks.clear();
  plan.head_lists.clear();
  plan.live_rows = 0;
  plan.total_rows = shape.total_rows;
  plan.lists_on_device = true;
  const int head_dim = std::exchange(head_tiles_.made_for, 0);
  const int out_features = std::exchange(output_tiles_.made_for, 0);
  if (head_dim > 0) make_head_tiles(plan, head_dim, target);
  if (out_features > 0) make_output_tiles(plan, out_features, target);
}

const GemmPlan& DeviceGemmPlan::shape_of(const GemmPlan& plan) const {
  return plan.lists_on_device ? builder_.shape() : plan;
}

void DeviceGemmPlan::upload_heads(const GemmPlan& plan, cudaStream_t stream) {
  if (has_heads_) return;
  upload(plan.head_lists, heads_, stream);
  has_heads_ = true;
}

void DeviceGemmPlan::make_head_tiles(const GemmPlan& plan, int head_dim,
                                     const LaunchTarget& target) {
  upload_heads(plan, target.stream);
  TileList& list = head_tiles_;
  if (list.made_for == head_dim) return;
  const int num_clusters = target.num_sms / 2, heads_per_tile = 2 * kWideTile / head_dim;
  if (plan.lists_on_device && head_dim == 128) {
    builder_.make_head_tiles(num_clusters, list, target.stream);
  } else if (plan.lists_on_device) {
    builder_.make_row_tiles(heads_per_tile, list, target.stream);
  } else if (head_dim == 128) {
    upload_tiles(cuda::make_head_tiles(plan, num_clusters), list, target.stream);
  } else {
    upload_tiles(make_row_tiles(plan, heads_per_tile), list, target.stream);
  }
  list.made_for = head_dim;
}

void DeviceGemmPlan::make_output_tiles(const GemmPlan& plan, int out_features,
                                       const LaunchTarget& target) {
  upload_heads(plan, target.stream);
  TileList& list = output_tiles_;
  if (list.made_for == out_features) return;
  const int num_clusters = target.num_sms / 2;
  if (plan.lists_on_device) {
    builder_.make_column_tiles(out_features, num_clusters, list, target.stream);
  } else {
    auto tiles = make_column_tiles(plan, out_features);
    halve_last_tiles(out_features, num_clusters, tiles);
    upload_tiles(tiles, list, target.stream);
  }
  list.made_for = out_features;
}

ProjectionParams DeviceGemmPlan::head_params(const InputProjection& projection,
                                             const LaunchTarget& target) {
  const PackedWeight& weight = *projection.weight;
  check_row_blocks("gemm_q", shape_of(*projection.plan));
  make_head_tiles(*projection.plan, weight.column_group, target);
  const NormRope& epilogue = projection.epilogue;
  ProjectionParams params{};
  params.w_map = weight_map(weight, 64);
  params.out_map = matrix_map(projection.out, kTileM / 2);
  params.tiles = head_tiles_.tiles.as<void>();
  params.num_tiles = head_tiles_.num_tiles;
  if (head_tiles_.is_counted) params.tiles_counted = head_tiles_.count.as<std::int32_t>();
  params.heads = heads_.as<std::int32_t>();
  params.bias = projection.bias.as<float>();
  params.out = projection.out.data;
  params.out_batch_stride = projection.out.stride(0);
  params.out_row_stride = projection.out.stride(1);
  params.out_features = static_cast<int>(weight.out_features);
  params.norm_weight = epilogue.norm_weight.as<float>();
  params.eps = epilogue.eps;
  params.cos = epilogue.cos.as<float>();
  params.sin = epilogue.sin.as<float>();
  params.rope_stride = epilogue.cos ? epilogue.cos.stride(0) : 0;
  return params;
}

GemmParams DeviceGemmPlan::output_params(const GemmPlan& plan, const OutputProjection& projection,
                                         const BiasCacheView& cache, const LaunchTarget& target) {
  const PackedWeight& weight = *projection.weight;
  const index_t head_columns = projection.o.size(2), head_dim = head_columns / plan.num_heads;
  if (head_dim % kSlice != 0) {
    FO_FAIL(kUnsupported,
            "gemm_o: the cuda backend has no kernel for head_dim %lld; it has multiples of %d",
            static_cast<long long>(head_dim), kSlice);
  }
  check_row_blocks("gemm_o", shape_of(plan));
  make_output_tiles(plan, static_cast<int>(weight.out_features), target);
  const TileList& list = output_tiles_;
  GemmParams params{};
  params.a_map = matrix_map(projection.o, kTileM / 2);
  const TensorView out = projection.residual ? projection.residual : projection.out;
  ProjectionParams& to = params.projections[0];
  to.w_map = weight_map(weight, 128);
  to.out_map = matrix_map(out, kTileM / 2);
  to.heads = heads_.as<std::int32_t>();
  to.tiles = list.tiles.as<void>();
  to.num_tiles = list.num_tiles;
  to.bias = projection.bias.as<float>();
  to.out = out.data;
  to.out_batch_stride = out.stride(0);
  to.out_row_stride = out.stride(1);
  to.out_features = static_cast<int>(weight.out_features);
  params.num_tiles = list.num_tiles;
  params.adds = projection.residual ? 1 : 0;
  params.gate = projection.gate.as<float>();
  params.slices_per_head = static_cast<int>(head_dim / kSlice);
  if (projection.mlp) {
    params.mlp_map = matrix_map(projection.mlp, kTileM / 2);
    params.mlp_slices = divide_up(projection.mlp.size(2), kSlice);
    params.mlp_column = static_cast<int>(head_columns);
  }
  params.order = cache.order;
  params.num_q_blocks = plan.num_q_blocks;
  for (int o = 0; o <= cache.order; ++o) {
    params.terms[o] = cache.terms[o].data;
    params.term_maps[o] = matrix_map(cache.terms[o], kTileM / 2);
  }
  if (cache.order >= 0) {
    params.term_batch_stride = cache.terms[0].stride(0);
    params.valid_order = cache.valid_order.as<std::uint8_t>();
  }
  return params;
}

void DeviceGemmPlan::launch_o_update(const GemmPlan& plan, const OutputProjection& projection,
                                     float steps_since_update, const BiasCacheView& cache,
                                     const LaunchTarget& target) {
  const DType term = term_type(cache, *projection.weight);
  const GemmKernel kernel =
      choose_kernel("gemm_o_update", *projection.weight, GemmKind::kUpdate, 0, term, target);
  GemmParams params = output_params(plan, projection, cache, target);
  params.inverse_steps = 1 / steps_since_update;
  launch(kernel, params, target);
  if (cache.order < 0 || params.num_tiles == 0) return;
  constexpr int kThreads = 256;
  launch_early(advance_valid_order, divide_up(params.num_tiles, kThreads), kThreads, 0,
               target.stream, output_tiles_.tiles.as<GemmTile>(), params.num_tiles,
               params.num_q_blocks, cache.order, cache.valid_order.as<std::uint8_t>());
}

void DeviceGemmPlan::launch_o_dispatch(const GemmPlan& plan, const OutputProjection& projection,
                                       std::span<const float> coefficients,
                                       const BiasCacheView& cache, const LaunchTarget& target) {
  const DType term = term_type(cache, *projection.weight);
  const GemmKernel kernel =
      choose_kernel("gemm_o_dispatch", *projection.weight, GemmKind::kDispatch, 0, term, target);
  GemmParams params = output_params(plan, projection, cache, target);
  params.order = static_cast<int>(coefficients.size()) - 1;
  std::copy(coefficients.begin(), coefficients.end(), params.coefficients);
  launch(kernel, params, target);
}

void launch_heads(ConstTensorView x, std::span<const InputProjection> projections,
                  std::span<DeviceGemmPlan* const> lists, const LaunchTarget& target) {
  const PackedWeight& weight = *projections[0].weight;
  const int head_dim = weight.column_group;
  const GemmKernel kernel =
      choose_kernel("gemm_q", weight, GemmKind::kHeads, head_dim, weight.dtype, target);
  GemmParams params{};
  params.a_map = matrix_map(x, head_dim == 128 ? kTileM : kTileM / 2);
  params.slices = divide_up(weight.in_features, kSlice);
  for (std::size_t i = 0; i < projections.size(); ++i) {
    params.projections[i] = lists[i]->head_params(projections[i], target);
    params.num_tiles += params.projections[i].num_tiles;
  }
  // Long lists first: what a sparse one ends with fills the gaps of the last round. Those that the
  // device counted are sparse.
  std::stable_sort(params.projections, params.projections + projections.size(),
                   [](const auto& a, const auto& b) {
                     if (!a.tiles_counted != !b.tiles_counted) return !a.tiles_counted;
                     return a.num_tiles > b.num_tiles;
                   });
  launch(kernel, params, target);
}

// Whether tiles of two row tiles x 256 columns, which read less, leave no block without rows, or
// few.
bool shares_weight(index_t rows) {
  const int row_tiles = divide_up(rows, kTileM);
  return row_tiles % 2 == 0 || row_tiles > 16;
}

void launch_linear(ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
                   Activation activation, TensorView out, const LaunchTarget& target) {
  const GemmKernel kernel =
      choose_kernel("linear", weight, GemmKind::kLinear, 0, weight.dtype, target);
  GemmParams params{};
  params.shares_weight = shares_weight(x.size(0)) ? 1 : 0;
  params.a_map = single_map(x, params.shares_weight ? kTileM : kTileM / 2);
  ProjectionParams& to = params.projections[0];
  to.w_map = weight_map(weight, params.shares_weight ? 64 : 128);
  if (out.dtype == DType::kF32) {
    params.out_is_f32 = true;
  } else {
    to.out_map = single_map(out, kTileM / 2);
  }
  params.rows = static_cast<int>(x.size(0));
  // A cluster takes 128 x 512, or 256 x 256.
  const int tile_rows = params.shares_weight ? 2 * kTileM : kTileM;
  params.column_tiles =
      divide_up(weight.out_features, params.shares_weight ? kWideTile : 2 * kWideTile);
  const int whole_tiles = divide_up(x.size(0), tile_rows) * params.column_tiles;
  params.wide_tiles = count_wide_tiles(whole_tiles, target.num_sms / 2);
  params.num_tiles = 2 * whole_tiles - params.wide_tiles;
  params.slices = divide_up(weight.in_features, kSlice);
  to.bias = bias.as<float>();
  to.out = out.data;
  to.out_row_stride = out.stride(0);
  to.out_features = static_cast<int>(weight.out_features);
  params.activation = static_cast<int>(activation);
  launch(kernel, params, target);
}

}  // namespace flashomni::cuda
