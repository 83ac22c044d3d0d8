// symbol_words.cpp -- symbols in a backend's memory: to it, from it, and plans by way of the host.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "core/check.h"
#include "flashomni/backend.h"

namespace flashomni {
namespace {

void check_grids(const char* function, const SparseSymbols& symbols, const SymbolWords& words) {
  FO_CHECK(symbols.q_grid() == words.q_grid && symbols.kv_grid() == words.kv_grid &&
               symbols.num_heads() == words.num_heads,
           "%s: symbols have another grid or number of heads than the words, expected the same",
           function);
}

Tensor host_copy(std::span<const std::uint32_t> words, Layout layout) {
  Tensor host = Tensor::host(DType::kI32, layout);
  std::ranges::copy(words, host.as<std::uint32_t>());
  return host;
}

// Copies to host memory wait for the stream.
std::span<const std::uint32_t> download(Backend& backend, const Tensor& from, Tensor& to,
                                        Stream stream) {
  to = Tensor::host(DType::kI32, from.view().layout);
  backend.copy(from, to, stream);
  return {to.as<std::uint32_t>(), static_cast<std::size_t>(to.num_elements())};
}

}  // namespace

SymbolWords make_symbol_words(Backend& backend, BlockGrid q_grid, BlockGrid kv_grid,
                              int num_heads) {
  const SparseSymbols shape(q_grid, kv_grid, num_heads);
  const index_t batch = q_grid.batch(), q_blocks = q_grid.num_blocks();
  SymbolWords words;
  words.cache = backend.allocate(DType::kI32, {batch, q_blocks, shape.head_words()});
  words.skip = backend.allocate(DType::kI32, {batch, num_heads, q_blocks, shape.kv_words()});
  words.q_grid = std::move(q_grid);
  words.kv_grid = std::move(kv_grid);
  words.num_heads = num_heads;
  return words;
}

void upload_symbols(Backend& backend, const SparseSymbols& symbols, SymbolWords& words,
                    Stream stream) {
  check_grids("upload_symbols", symbols, words);
  const Tensor cache = host_copy(symbols.cache_words(), words.cache.view().layout);
  const Tensor skip = host_copy(symbols.skip_words(), words.skip.view().layout);
  backend.copy(cache, words.cache, stream);
  backend.copy(skip, words.skip, stream);
  backend.synchronize(stream);
}

SparseSymbols download_symbols(Backend& backend, const SymbolWords& words, Stream stream) {
  Tensor cache, skip;
  const auto cache_words = download(backend, words.cache, cache, stream);
  const auto skip_words = download(backend, words.skip, skip, stream);
  SparseSymbols symbols(words.q_grid, words.kv_grid, words.num_heads);
  symbols.import_words(cache_words, skip_words);
  return symbols;
}

void Backend::build_attention_plan_from(const SymbolWords& words, AttentionPlan& plan,
                                        Stream stream) {
  build_attention_plan(download_symbols(*this, words, stream), plan, stream);
}

void Backend::build_gemm_plan_from(const SymbolWords& words, int first_token, int num_tokens,
                                   const SymbolWords* previous, GemmPlan& plan, Stream stream) {
  const SparseSymbols symbols = download_symbols(*this, words, stream);
  if (!previous) {
    build_gemm_plan(symbols, first_token, num_tokens, nullptr, plan, stream);
    return;
  }
  const SparseSymbols before = download_symbols(*this, *previous, stream);
  build_gemm_plan(symbols, first_token, num_tokens, &before, plan, stream);
}

}  // namespace flashomni
