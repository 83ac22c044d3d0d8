#include "backend/cpu/attention.h"
#include "plan/cached_blocks.h"

namespace flashomni::cpu {
namespace {

template <typename View>
auto* row_address(const View& x, index_t item, index_t token, index_t head) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(x.data)>>,
                                  const char, char>;
  const index_t offset = item * x.stride(0) + token * x.stride(1) + head * x.stride(2);
  return static_cast<Byte*>(x.data) + offset * size_in_bytes(x.dtype);
}

}  // namespace

void reuse_cached(Context& context, const AttentionPlan& plan, const AttentionReuse& reuse,
                  TensorView out) {
  const std::size_t num_terms = reuse.terms.size();
  if (num_terms == 0) return;
  const index_t head_dim = out.size(3);
  context.worker_scratch.reserve(num_terms * static_cast<std::size_t>(head_dim) * sizeof(float));
  const std::vector<CachedBlock> blocks = cached_blocks(plan);
  context.pool.parallel_for(static_cast<index_t>(blocks.size()), [&](index_t i, int worker) {
    const CachedBlock& block = blocks[static_cast<std::size_t>(i)];
    float* widened = static_cast<float*>(context.worker_scratch.of(worker));
    for (index_t t = block.rows.start; t < block.rows.start + block.rows.count; ++t) {
      const float* parts[kMaxForecastOrder + 1];
      for (std::size_t o = 0; o < num_terms; ++o) {
        const char* term = row_address(reuse.terms[o], block.batch, t, block.head);
        parts[o] = reinterpret_cast<const float*>(term);
        if (reuse.terms[o].dtype == DType::kF32) continue;
        parts[o] = widened + static_cast<index_t>(o) * head_dim;
        context.rows->widen(term, reuse.terms[o].dtype,
                            widened + static_cast<index_t>(o) * head_dim, head_dim);
      }
      context.rows->combine(parts, reuse.coefficients.data(), static_cast<int>(num_terms), head_dim,
                            row_address(out, block.batch, t, block.head), out.dtype);
    }
  });
}

}  // namespace flashomni::cpu
