#include "backend/cpu/elementwise.h"

#include <algorithm>

namespace flashomni::cpu {
namespace {

// Elements of a task: a few microseconds of work, so that handing it out costs little.
constexpr index_t kChunk = 16384;

// Calls body(first, count, worker) over [0, total).
template <typename Body>
void for_each_chunk(ThreadPool& pool, index_t total, index_t chunk, const Body& body) {
  pool.parallel_for((total + chunk - 1) / chunk, [&](index_t i, int worker) {
    body(i * chunk, std::min(chunk, total - i * chunk), worker);
  });
}

index_t rows_of_a_chunk(index_t dim) {
  return std::max<index_t>(1, kChunk / std::max<index_t>(dim, 1));
}

template <typename View>
auto* address(const View& view, index_t offset) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                                  const char, char>;
  return static_cast<Byte*>(view.data) + offset * size_in_bytes(view.dtype);
}

}  // namespace

void norm_modulate(Context& context, ConstTensorView x, ConstTensorView shift,
                   ConstTensorView scale, float eps, TensorView out) {
  const index_t dim = x.size(1);
  for_each_chunk(context.pool, x.size(0), rows_of_a_chunk(dim),
                 [&](index_t first, index_t count, int) {
                   for (index_t row = first; row < first + count; ++row) {
                     context.rows->norm_modulate(x.as<float>() + row * x.stride(0),
                                                 shift.as<float>(), scale.as<float>(), eps, dim,
                                                 address(out, row * out.stride(0)), out.dtype);
                   }
                 });
}

void gated_add(Context& context, ConstTensorView y, ConstTensorView gate, TensorView residual) {
  const index_t dim = residual.size(1);
  for_each_chunk(
      context.pool, residual.size(0), rows_of_a_chunk(dim), [&](index_t first, index_t count, int) {
        for (index_t row = first; row < first + count; ++row) {
          context.rows->gated_add(address(y, row * y.stride(0)), y.dtype, gate.as<float>(),
                                  residual.as<float>() + row * residual.stride(0), dim);
        }
      });
}

void forecast(Context& context, std::span<const TensorView> terms,
              std::span<const float> coefficients, TensorView out) {
  for_each_chunk(
      context.pool, out.layout.num_elements(), kChunk, [&](index_t first, index_t count, int) {
        const float* parts[kMaxForecastOrder + 1];
        for (std::size_t o = 0; o < coefficients.size(); ++o) {
          parts[o] = terms[o].as<float>() + first;
        }
        context.rows->combine(parts, coefficients.data(), static_cast<int>(coefficients.size()),
                              count, address(out, first), out.dtype);
      });
}

void push_differences(Context& context, ConstTensorView value, int order, float steps,
                      std::span<const TensorView> terms) {
  context.worker_scratch.reserve(kChunk * sizeof(float));
  for_each_chunk(context.pool, value.layout.num_elements(), kChunk,
                 [&](index_t first, index_t count, int worker) {
                   float* parts[kMaxForecastOrder + 1];
                   for (int o = 0; o <= order; ++o) parts[o] = terms[o].as<float>() + first;
                   float* widened = static_cast<float*>(context.worker_scratch.of(worker));
                   context.rows->widen(address(value, first), value.dtype, widened, count);
                   context.rows->push_differences(widened, order, steps, parts, count);
                 });
}

}  // namespace flashomni::cpu
