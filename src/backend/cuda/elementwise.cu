#include "backend/cuda/elementwise.h"

#include <cmath>

#include "backend/cuda/kernels/elementwise.cuh"

namespace flashomni::cuda {
namespace {

constexpr int kThreads = 256, kPoolThreads = 128;

FloatArray float_array(ConstTensorView view) {
  const Float type = view.dtype == DType::kBF16  ? Float::kBF16
                     : view.dtype == DType::kF16 ? Float::kF16
                                                 : Float::kF32;
  return {const_cast<void*>(view.data), type};
}

unsigned blocks_for(index_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

Terms device_terms(std::span<const TensorView> terms, std::size_t count) {
  Terms result{};
  result.count = static_cast<int>(count);
  for (std::size_t o = 0; o < count; ++o) result.data[o] = terms[o].as<float>();
  return result;
}

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

template <typename T>
const T* upload(const std::vector<T>& from, DeviceBuffer& to, cudaStream_t stream) {
  to.reserve(from.size() * sizeof(T) + 1);
  FO_CUDA(cudaMemcpyAsync(to.as<T>(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice,
                          stream));
  return to.as<T>();
}

PoolInput pool_input(ConstTensorView x, const int2* blocks, int num_blocks) {
  return {float_array(x),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          blocks,
          num_blocks,
          static_cast<int>(x.size(3)),
          nullptr};
}

// Means [batch, heads, num_blocks, head_dim] and, if asked for, similarities.
void pool(const PoolInput& input, ConstTensorView x, DeviceBuffer& means, DeviceBuffer* similarity,
          cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(input.num_blocks), static_cast<unsigned>(x.size(2)),
                  static_cast<unsigned>(x.size(0)));
  const std::size_t rows = static_cast<std::size_t>(grid.x) * grid.y * grid.z;
  means.reserve(rows * input.head_dim * sizeof(float) + 1);
  if (similarity) similarity->reserve(rows * sizeof(float) + 1);
  if (rows == 0) return;
  pool_kernel<<<grid, kPoolThreads, 0, stream>>>(input, means.as<float>(),
                                                 similarity ? similarity->as<float>() : nullptr);
  FO_CUDA(cudaGetLastError());
}

void download(const DeviceBuffer& from, std::size_t count, std::vector<float>& to,
              cudaStream_t stream) {
  to.resize(count);
  FO_CUDA(cudaMemcpyAsync(to.data(), from.as<float>(), count * sizeof(float),
                          cudaMemcpyDeviceToHost, stream));
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

void launch_norm_modulate(ConstTensorView x, ConstTensorView shift, ConstTensorView scale,
                          float eps, TensorView out, cudaStream_t stream) {
  if (x.size(0) == 0) return;
  norm_modulate_kernel<<<static_cast<unsigned>(x.size(0)), kThreads, 0, stream>>>(
      x.as<float>(), x.stride(0), {shift.as<float>(), scale.as<float>(), eps}, float_array(out),
      out.stride(0), static_cast<int>(x.size(1)));
  FO_CUDA(cudaGetLastError());
}

void launch_gated_add(ConstTensorView y, ConstTensorView gate, TensorView residual,
                      cudaStream_t stream) {
  if (residual.size(0) == 0) return;
  gated_add_kernel<<<static_cast<unsigned>(residual.size(0)), kThreads, 0, stream>>>(
      float_array(y), y.stride(0), gate.as<float>(), residual.as<float>(), residual.stride(0),
      static_cast<int>(residual.size(1)));
  FO_CUDA(cudaGetLastError());
}

void launch_forecast(std::span<const TensorView> terms, std::span<const float> coefficients,
                     TensorView out, cudaStream_t stream) {
  const index_t count = out.layout.num_elements();
  if (count == 0) return;
  Terms inputs = device_terms(terms, coefficients.size());
  std::copy(coefficients.begin(), coefficients.end(), inputs.coefficients);
  forecast_kernel<<<blocks_for(count), kThreads, 0, stream>>>(inputs, float_array(out), count);
  FO_CUDA(cudaGetLastError());
}

void launch_push_differences(ConstTensorView value, int order, float steps,
                             std::span<const TensorView> terms, cudaStream_t stream) {
  const index_t count = value.layout.num_elements();
  if (count == 0) return;
  push_differences_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
      float_array(value), device_terms(terms, static_cast<std::size_t>(order) + 1), steps, count);
  FO_CUDA(cudaGetLastError());
}

void BlockPooling::run(ConstTensorView q, ConstTensorView k, const BlockGrid& q_grid,
                       const BlockGrid& kv_grid, const BlockScoreOptions& options,
                       BlockScores& scores, cudaStream_t stream) {
  const int head_dim = static_cast<int>(q.size(3));
  if (head_dim > kMostPooledDims) {
    FO_FAIL(kUnsupported, "block_scores: the cuda backend pools up to head_dim %d, not %d",
            kMostPooledDims, head_dim);
  }
  const int2* q_blocks = upload(block_table(q_grid), q_blocks_, stream);
  const int2* kv_blocks = upload(block_table(kv_grid), kv_blocks_, stream);
  PoolInput keys = pool_input(k, kv_blocks, kv_grid.num_blocks());
  if (options.subtract_k_mean) {
    std::vector<int2> whole;
    for (int item = 0; item < kv_grid.batch(); ++item) whole.push_back({0, kv_grid.length(item)});
    pool(pool_input(k, upload(whole, whole_, stream), 1), k, head_means_, nullptr, stream);
    keys.subtract = head_means_.as<float>();
  }
  pool(pool_input(q, q_blocks, q_grid.num_blocks()), q, q_means_,
       options.similarity ? &q_similarity_ : nullptr, stream);
  pool(keys, k, k_means_, options.similarity ? &k_similarity_ : nullptr, stream);

  const auto num_heads = static_cast<int>(q.size(2)), num_kv_heads = static_cast<int>(k.size(2));
  scores = {q_grid.batch(), num_heads, q_grid.num_blocks(), kv_grid.num_blocks(), {}, {}, {}};
  const LogitShape shape{
      num_heads / num_kv_heads,
      num_kv_heads,
      scores.num_q_blocks,
      scores.num_kv_blocks,
      head_dim,
      options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(head_dim)),
      options.log_count_bias ? kv_grid.block() : 0,
      q_blocks,
      kv_blocks};
  const dim3 grid(static_cast<unsigned>(scores.num_q_blocks), static_cast<unsigned>(num_heads),
                  static_cast<unsigned>(scores.batch));
  const std::size_t q_rows = static_cast<std::size_t>(grid.x) * grid.y * grid.z;
  logits_.reserve(q_rows * scores.num_kv_blocks * sizeof(float) + 1);
  if (q_rows > 0) {
    pooled_logits_kernel<<<grid, kPoolThreads, 0, stream>>>(
        shape, q_means_.as<float>(), k_means_.as<float>(), logits_.as<float>());
    FO_CUDA(cudaGetLastError());
  }
  download(logits_, q_rows * scores.num_kv_blocks, scores.logits, stream);
  if (options.similarity) {
    download(q_similarity_, q_rows, scores.q_similarity, stream);
    download(k_similarity_,
             static_cast<std::size_t>(scores.batch) * num_kv_heads * scores.num_kv_blocks,
             scores.k_similarity, stream);
  }
  FO_CUDA(cudaStreamSynchronize(stream));
  repeat_heads(scores.num_kv_blocks, num_heads / num_kv_heads, scores.k_similarity);
}

}  // namespace flashomni::cuda
