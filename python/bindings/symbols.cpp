// symbols.cpp -- block grids, sparse symbols and the plans made of them.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/symbols.h"

#include <span>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "flashomni/error.h"
#include "flashomni/plan.h"
#include "flashomni/selection.h"

namespace flashomni::python {
namespace {

TextPosition text_position_of(const std::string& name) {
  if (name == "none") return TextPosition::kNone;
  if (name == "first") return TextPosition::kFirst;
  if (name == "last") return TextPosition::kLast;
  throw Error(ErrorCode::kInvalidArgument,
              "text_position is '" + name + "', allowed are 'none', 'first' and 'last'");
}

BlockGrid make_grid(int block, int batch, int num_tokens, const std::vector<int>& lengths,
                    int text_tokens, const std::string& text_position) {
  const auto segments = make_segments(num_tokens, text_tokens, text_position_of(text_position));
  return BlockGrid(block, batch, segments, lengths);
}

std::span<std::uint8_t> bytes_of(const Array& array) {
  return {array.view.as<std::uint8_t>(),
          static_cast<std::size_t>(array.view.layout.num_elements())};
}

std::span<const std::uint8_t> bytes_of(const nb::bytes& bytes) {
  return {static_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

nb::tuple official_bytes(const SparseSymbols& symbols) {
  const OfficialSymbols official = export_official(symbols);
  return nb::make_tuple(nb::bytes(official.cache.data(), official.cache.size()),
                        nb::bytes(official.skip.data(), official.skip.size()),
                        official.cache_indptr, official.skip_indptr);
}

SparseSymbols from_official_bytes(const BlockGrid& q_grid, const BlockGrid& kv_grid, int num_heads,
                                  const nb::bytes& cache, const nb::bytes& skip,
                                  const std::vector<std::int32_t>& cache_indptr,
                                  const std::vector<std::int32_t>& skip_indptr) {
  const auto cache_bytes = bytes_of(cache), skip_bytes = bytes_of(skip);
  return import_official(q_grid, kv_grid, num_heads,
                         {{cache_bytes.begin(), cache_bytes.end()},
                          {skip_bytes.begin(), skip_bytes.end()},
                          cache_indptr,
                          skip_indptr});
}

// Plans from symbols on the host or from words in the backend's memory; over a plan that there is,
// whose memory is used again.
void build(LockedBackend& backend, const SparseSymbols& symbols, AttentionPlan& plan,
           std::uintptr_t stream) {
  backend.run([&](Backend& b) { b.build_attention_plan(symbols, plan, stream_of(stream)); });
}
void build(LockedBackend& backend, const SymbolWords& words, AttentionPlan& plan,
           std::uintptr_t stream) {
  backend.run([&](Backend& b) { b.build_attention_plan_from(words, plan, stream_of(stream)); });
}

// The tokens of the sequence that a projection's rows are.
struct TokenRange {
  int first, count;
};

void build(LockedBackend& backend, const SparseSymbols& symbols, const TokenRange& tokens,
           const SparseSymbols* previous, GemmPlan& plan, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    b.build_gemm_plan(symbols, tokens.first, tokens.count, previous, plan, stream_of(stream));
  });
}
void build(LockedBackend& backend, const SymbolWords& words, const TokenRange& tokens,
           const SymbolWords* previous, GemmPlan& plan, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    b.build_gemm_plan_from(words, tokens.first, tokens.count, previous, plan, stream_of(stream));
  });
}

void bind_stats(nb::module_& module) {
  nb::class_<SymbolStats>(module, "SymbolStats",
                          "What symbols leave to do; pairs are (query token, key token) pairs.")
      .def_ro("q_blocks", &SymbolStats::q_blocks)
      .def_ro("live_q_blocks", &SymbolStats::live_q_blocks)
      .def_ro("block_pairs", &SymbolStats::block_pairs)
      .def_ro("live_block_pairs", &SymbolStats::live_block_pairs)
      .def_ro("pairs", &SymbolStats::pairs)
      .def_ro("live_pairs", &SymbolStats::live_pairs)
      .def_prop_ro("live_fraction", &SymbolStats::live_fraction)
      .def_prop_ro("cached_fraction", &SymbolStats::cached_fraction)
      .def_prop_ro("skipped_fraction", &SymbolStats::skipped_fraction)
      .def_prop_ro("density", &SymbolStats::density);
}

void bind_words(nb::module_& module) {
  nb::class_<SymbolWords>(module, "SymbolWords", "The symbols of a layer in a backend's memory.")
      .def(
          "__init__",
          [](SymbolWords* self, LockedBackend& backend, const BlockGrid& q_grid,
             const BlockGrid& kv_grid, int num_heads) {
            new (self) SymbolWords(backend.run(
                [&](Backend& b) { return make_symbol_words(b, q_grid, kv_grid, num_heads); }));
          },
          nb::arg("backend"), nb::arg("q_grid"), nb::arg("kv_grid"), nb::arg("num_heads"),
          nb::keep_alive<1, 2>())
      .def(
          "upload",
          [](SymbolWords& self, LockedBackend& backend, const SparseSymbols& symbols,
             std::uintptr_t stream) {
            backend.run([&](Backend& b) { upload_symbols(b, symbols, self, stream_of(stream)); });
          },
          nb::arg("backend"), nb::arg("symbols"), nb::arg("stream"))
      .def(
          "download",
          [](const SymbolWords& self, LockedBackend& backend, std::uintptr_t stream) {
            return backend.run(
                [&](Backend& b) { return download_symbols(b, self, stream_of(stream)); });
          },
          nb::arg("backend"), nb::arg("stream"));
}

template <typename Symbols>
void bind_attention_plan(nb::class_<AttentionPlan>& plan, const char* symbols) {
  const auto build_it = [](AttentionPlan& self, LockedBackend& backend, const Symbols& from,
                           std::uintptr_t stream) { build(backend, from, self, stream); };
  plan.def("build", build_it, nb::arg("backend"), nb::arg(symbols), nb::arg("stream"),
           nb::keep_alive<1, 2>());
}

template <typename Symbols>
void bind_gemm_plan(nb::class_<GemmPlan>& plan, const char* symbols) {
  const auto build_it = [](GemmPlan& self, LockedBackend& backend, const Symbols& from,
                           int first_token, int num_tokens, const Symbols* previous,
                           std::uintptr_t stream) {
    build(backend, from, {first_token, num_tokens}, previous, self, stream);
  };
  plan.def("build", build_it, nb::arg("backend"), nb::arg(symbols), nb::arg("first_token"),
           nb::arg("num_tokens"), nb::arg("previous").none(), nb::arg("stream"),
           nb::keep_alive<1, 2>());
}

// From symbols on the host, or from words in the backend's memory; a plan may be built again.
void bind_plans(nb::module_& module) {
  nb::class_<AttentionPlan> attention(module, "AttentionPlan");
  attention.def(nb::init<>());
  bind_attention_plan<SparseSymbols>(attention, "symbols");
  bind_attention_plan<SymbolWords>(attention, "words");
  nb::class_<GemmPlan> gemm(module, "GemmPlan");
  gemm.def(nb::init<>());
  bind_gemm_plan<SparseSymbols>(gemm, "symbols");
  bind_gemm_plan<SymbolWords>(gemm, "words");
}

}  // namespace

void bind_symbols(nb::module_& module) {
  nb::class_<BlockGrid>(module, "BlockGrid")
      .def(
          "__init__",
          [](BlockGrid* self, int block, int batch, int num_tokens, const std::vector<int>& lengths,
             int text_tokens, const std::string& text_position) {
            new (self)
                BlockGrid(make_grid(block, batch, num_tokens, lengths, text_tokens, text_position));
          },
          nb::arg("block"), nb::arg("batch"), nb::arg("num_tokens"), nb::arg("lengths"),
          nb::arg("text_tokens"), nb::arg("text_position"))
      .def_prop_ro("num_blocks", &BlockGrid::num_blocks);
  nb::class_<SparseSymbols>(module, "SparseSymbols")
      .def(
          "__init__",
          [](SparseSymbols* self, const BlockGrid& q_grid, const BlockGrid& kv_grid, int num_heads,
             const Array* cache, const Array* skip) {
            new (self) SparseSymbols(SparseSymbols::from_masks(
                q_grid, kv_grid, num_heads, view_or_none(cache), view_or_none(skip)));
          },
          nb::arg("q_grid"), nb::arg("kv_grid"), nb::arg("num_heads"), nb::arg("cache").none(),
          nb::arg("skip").none())
      .def_static("from_official", from_official_bytes, nb::arg("q_grid"), nb::arg("kv_grid"),
                  nb::arg("num_heads"), nb::arg("cache"), nb::arg("skip"), nb::arg("cache_indptr"),
                  nb::arg("skip_indptr"))
      .def("to_official", official_bytes,
           nb::sig("def to_official(self) -> tuple[bytes, bytes, list[int], list[int]]"))
      .def(
          "to_masks",
          [](const SparseSymbols& self, const Array& cache, const Array& skip) {
            self.to_masks(bytes_of(cache), bytes_of(skip));
          },
          nb::arg("cache"), nb::arg("skip"))
      .def("stats", &SparseSymbols::stats);
  bind_stats(module);
  bind_words(module);
  bind_plans(module);
}

}  // namespace flashomni::python
