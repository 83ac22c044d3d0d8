#include "backend/cuda/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/tensor_map.h"
#include "plan/cached_blocks.h"

namespace flashomni::cuda {
namespace {

constexpr int kTileQ = 128;  // rows of a query block that the kernels take at once
constexpr int kSmallestGroup = 16, kLargestGroup = 128;

std::vector<int2> block_table(const BlockGrid& grid) {
  std::vector<int2> table;
  for (int item = 0; item < grid.batch(); ++item) {
    for (int index = 0; index < grid.num_blocks(); ++index) {
      const Block block = grid.at(item, index);
      table.push_back({block.start, block.count});
    }
  }
  return table;
}

AttentionKernel choose_kernel(const AttentionPlan& plan, const AttentionTensors& tensors,
                              int arch) {
  const int block_q = plan.q_grid.block(), block_kv = plan.kv_grid.block();
  const auto head_dim = static_cast<int>(tensors.q.size(3));
  const auto kernel = find_attention_kernel(arch, tensors.q.dtype, head_dim);
  if (!kernel) {
    FO_FAIL(kUnsupported,
            "attention: the cuda backend has no kernel for %s, head_dim %d on compute capability "
            "%d.%d; it has bf16 and f16, head_dim 64 and 128, on 9.0",
            std::string(dtype_name(tensors.q.dtype)).c_str(), head_dim, arch / 10, arch % 10);
  }
  const bool is_power_of_two = std::has_single_bit(static_cast<unsigned>(block_kv));
  if (block_q > kTileQ || !is_power_of_two || block_kv < kSmallestGroup) {
    FO_FAIL(kUnsupported,
            "attention: the cuda backend has no kernel for block_q %d, block_kv %d; it has block_q "
            "up to 128 and block_kv of 16, 32, 64, 128, ...",
            block_q, block_kv);
  }
  if (!(tensors.scale > 0)) {
    FO_FAIL(kUnsupported,
            "attention: the cuda backend has no kernel for scale %g; it has scale > 0",
            tensors.scale);
  }
  return *kernel;
}

// [batch, rows, heads, head_dim] with `rows` of them valid.
TmaTensor tma_tensor(ConstTensorView view, index_t rows) {
  return {view.data,
          view.dtype,
          {view.size(3), view.size(2), rows, view.size(0)},
          {1, view.stride(2), view.stride(1), view.stride(0)},
          4};
}

CUtensorMap row_map(ConstTensorView view, index_t valid_rows, int box_rows) {
  return make_tensor_map(tma_tensor(view, std::max<index_t>(valid_rows, 1)), 2, box_rows);
}

// Tensor maps travel to global memory as kernel parameters: a launch can be captured, and needs no
// host memory to stay alive.
struct MapBatch {
  static constexpr int kCount = 24;  // 3 KiB of the 4 KiB of parameters
  CUtensorMap maps[kCount];
};
__global__ void store_maps(const __grid_constant__ MapBatch batch, CUtensorMap* to, int count) {
  const auto* from = reinterpret_cast<const int*>(batch.maps);
  auto* words = reinterpret_cast<int*>(to);
  constexpr int kWords = sizeof(CUtensorMap) / sizeof(int);
  for (int i = threadIdx.x; i < count * kWords; i += blockDim.x) words[i] = from[i];
}

// K and V maps of every item, which end at the item's length: TMA then reads zeros past it, so that
// weights of 0 meet values of 0 and never the NaN of uninitialised padding.
void store_item_maps(const AttentionPlan& plan, const AttentionTensors& tensors, int box_rows,
                     CUtensorMap* to, cudaStream_t stream) {
  MapBatch batch;
  int count = 0;
  for (int item = 0; item < plan.kv_grid.batch(); ++item) {
    const int length = plan.kv_grid.length(item);
    batch.maps[count++] = row_map(tensors.k, length, box_rows);
    batch.maps[count++] = row_map(tensors.v, length, box_rows);
    if (count < MapBatch::kCount && item + 1 < plan.kv_grid.batch()) continue;
    store_maps<<<1, 256, 0, stream>>>(batch, to, count);
    FO_CUDA(cudaGetLastError());
    to += count;
    count = 0;
  }
}

bool is_ragged(const AttentionPlan& plan, index_t rows) {
  for (int item = 0; item < plan.kv_grid.batch(); ++item) {
    if (plan.kv_grid.length(item) != rows) return true;
  }
  return false;
}

void set_tensors(const AttentionTensors& tensors, AttentionParams& params) {
  const TensorView& out = tensors.out;
  params.q_map = row_map(tensors.q, tensors.q.size(1), kTileQ);
  check_alignment(tma_tensor(out, out.size(1)));
  params.out = out.data;
  params.out_batch_stride = out.stride(0);
  params.out_row_stride = out.stride(1);
  params.out_head_stride = out.stride(2);
  if (tensors.lse) {
    params.lse = tensors.lse.as<float>();
    params.lse_batch_stride = tensors.lse.stride(0);
    params.lse_head_stride = tensors.lse.stride(1);
    params.lse_row_stride = tensors.lse.stride(2);
  }
  params.scale_log2 = tensors.scale * std::numbers::log2e_v<float>;
  params.heads_per_kv_head = static_cast<int>(tensors.q.size(2) / tensors.k.size(2));
}

void set_reuse(const AttentionReuse& reuse, AttentionReuseParams& params) {
  params.num_terms = static_cast<int>(reuse.terms.size());
  params.terms_are_f32 = reuse.terms[0].dtype == DType::kF32;
  for (std::size_t o = 0; o < reuse.terms.size(); ++o) {
    const ConstTensorView& term = reuse.terms[o];
    params.terms[o] = {term.data, term.stride(0), term.stride(1), term.stride(2)};
    params.coefficients[o] = reuse.coefficients[o];
    const index_t strides = term.stride(0) | term.stride(1) | term.stride(2);
    const auto address = reinterpret_cast<std::uintptr_t>(term.data);
    if (strides % 4 != 0 || address % (4 * size_in_bytes(term.dtype)) != 0) {
      FO_FAIL(kUnsupported,
              "attention: the cuda backend reads reuse.terms[%zu] four elements at a time; rows at "
              "%p with strides %lld, %lld and %lld are not aligned to them",
              o, term.data, static_cast<long long>(term.stride(0)),
              static_cast<long long>(term.stride(1)), static_cast<long long>(term.stride(2)));
    }
  }
}

}  // namespace

void DeviceAttentionPlan::assign(const AttentionPlan& plan, const CutOptions& options,
                                 cudaStream_t stream) {
  cut_into_pieces(plan, options, pieces_);
  num_cached_ = -1;
  upload(pieces_.list, lists_.pieces, stream);
  upload(pieces_.starts, lists_.starts, stream);
  upload(plan.kv_blocks, lists_.kv_blocks, stream);
  upload(block_table(plan.kv_grid), lists_.kv_table, stream);
  num_pieces_ = static_cast<int>(pieces_.list.size());
  num_sms_ = options.num_sms;
  num_slots_ = pieces_.num_slots;
  reserve_counters(stream);
}

void DeviceAttentionPlan::assign(const SymbolWords& words, const CutOptions& options,
                                 cudaStream_t stream) {
  num_slots_ = builder_.build(words, options, lists_, stream);
  num_pieces_ = words.q_grid.batch() * words.num_heads * words.q_grid.num_blocks();
  num_cached_ = num_pieces_;
  num_sms_ = options.num_sms;
  reserve_counters(stream);
}

void DeviceAttentionPlan::reserve_counters(cudaStream_t stream) {
  const std::size_t bytes = sizeof(int) * 8 * num_slots_;
  if (counters_.reserve(bytes)) {
    FO_CUDA(cudaMemsetAsync(counters_.as<void>(), 0, bytes, stream));
  }
}

void DeviceAttentionPlan::list_cached_rows(const AttentionPlan& plan, cudaStream_t stream) {
  std::vector<CachedRows> rows;
  for (const CachedBlock& block : cached_blocks(plan)) {
    rows.push_back({block.batch, block.head, block.rows.start, block.rows.count});
  }
  upload(rows, lists_.cached, stream);
  num_cached_ = static_cast<int>(rows.size());
}

void DeviceAttentionPlan::launch(const AttentionPlan& plan, const AttentionTensors& tensors,
                                 int arch, cudaStream_t stream) {
  const AttentionKernel kernel = choose_kernel(plan, tensors, arch);
  if (!tensors.reuse.terms.empty() && num_cached_ < 0) list_cached_rows(plan, stream);
  const int num_cached = tensors.reuse.terms.empty() ? 0 : num_cached_;
  if (num_pieces_ == 0 && num_cached == 0) return;
  const int block_kv = plan.kv_grid.block(), group_rows = std::min(block_kv, kLargestGroup);

  AttentionParams params{};
  set_tensors(tensors, params);
  if (is_ragged(plan, tensors.k.size(1))) {
    kv_maps_.reserve(2 * plan.kv_grid.batch() * sizeof(CUtensorMap));
    store_item_maps(plan, tensors, group_rows, kv_maps_.as<CUtensorMap>(), stream);
    params.kv_maps = kv_maps_.as<CUtensorMap>();
  } else {
    params.k_map = row_map(tensors.k, tensors.k.size(1), group_rows);
    params.v_map = row_map(tensors.v, tensors.v.size(1), group_rows);
  }
  if (num_cached > 0) set_reuse(tensors.reuse, params.reuse);
  params.reuse.blocks = lists_.cached.as<CachedRows>();
  params.reuse.num_blocks = num_cached;
  params.pieces = lists_.pieces.as<AttentionPiece>();
  params.starts = lists_.starts.as<AttentionStart>();
  params.kv_blocks = lists_.kv_blocks.as<std::int32_t>();
  params.kv_table = lists_.kv_table.as<int2>();
  params.counters = counters_.as<int>();
  params.num_kv_blocks = plan.kv_grid.num_blocks();
  params.log2_group_rows = std::countr_zero(static_cast<unsigned>(group_rows));
  params.log2_groups_per_block = std::countr_zero(static_cast<unsigned>(block_kv / group_rows));
  partials_.reserve(static_cast<std::size_t>(num_slots_) * kernel.partial_bytes);
  params.partials = partials_.as<void>();

  FO_CUDA(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kernel.shared_bytes));
  launch_early(kernel.function, num_sms_, kernel.threads, kernel.shared_bytes, stream, params);
}

}  // namespace flashomni::cuda
