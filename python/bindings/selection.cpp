// selection.cpp -- the selection policy, to symbols on the host or in a backend's memory.
// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "flashomni/error.h"
#include "flashomni/policy.h"

namespace flashomni::python {
namespace {

void check_pooled(const char* name, ConstTensorView tensor, const Backend& backend) {
  check_device(name, tensor, backend);
  if (tensor.size(3) > 1 && tensor.stride(3) != 1) {
    throw Error(ErrorCode::kInvalidArgument, std::string(name) + " has stride " +
                                                 std::to_string(tensor.stride(3)) +
                                                 " in its last axis, expected 1");
  }
}

// Caches and skips blocks of `symbols` by q and k; returns the scores C and G.
nb::tuple policy(LockedBackend& backend, const FlashOmniOptions& options, const Array& q,
                 const Array& k, SparseSymbols& symbols, std::uintptr_t stream) {
  const SelectionScores scores = backend.run([&](Backend& b) {
    check_pooled("policy: q", q.view, b);
    check_pooled("policy: k", k.view, b);
    BlockScores pooled;
    b.block_scores(q.view, k.view, symbols.q_grid(), symbols.kv_grid(),
                   {.similarity = options.sim_threshold.has_value(),
                    .subtract_k_mean = options.subtract_k_mean,
                    .log_count_bias = options.log_count_bias},
                   pooled, stream_of(stream));
    return select_flashomni(options, /*ramp=*/1, pooled, symbols);
  });
  return nb::make_tuple(scores.c, scores.g);
}

// Writes `words` and the scores C and G, which lie where q does; waits for nothing on a GPU.
void select(LockedBackend& backend, const FlashOmniOptions& options, const Array& q, const Array& k,
            SymbolWords& words, const std::pair<const Array*, const Array*>& scores,
            std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    check_pooled("policy: q", q.view, b);
    check_pooled("policy: k", k.view, b);
    b.select_symbols(q.view, k.view, options, /*ramp=*/1, words,
                     {view_or_none(scores.first), view_or_none(scores.second)}, stream_of(stream));
  });
}

PolicyScope scope_of(const std::string& name) {
  if (name == "head") return PolicyScope::kHead;
  if (name == "layer") return PolicyScope::kLayer;
  throw Error(ErrorCode::kInvalidArgument,
              "policy: scope is '" + name + "', allowed are 'head' and 'layer'");
}

}  // namespace

void bind_selection(nb::module_& module) {
  nb::class_<FlashOmniOptions>(module, "FlashOmniOptions")
      .def(nb::init<>())
      .def_rw("tau_q", &FlashOmniOptions::tau_q)
      .def_rw("tau_kv", &FlashOmniOptions::tau_kv)
      .def_prop_rw(
          "scope",
          [](const FlashOmniOptions& o) {
            return std::string(o.scope == PolicyScope::kHead ? "head" : "layer");
          },
          [](FlashOmniOptions& o, const std::string& name) { o.scope = scope_of(name); })
      .def_rw("sim_threshold", &FlashOmniOptions::sim_threshold, nb::arg().none())
      .def_rw("keep_text_kv", &FlashOmniOptions::keep_text_kv)
      .def_rw("subtract_k_mean", &FlashOmniOptions::subtract_k_mean)
      .def_rw("log_count_bias", &FlashOmniOptions::log_count_bias);
  module.def("policy", policy, nb::arg("backend"), nb::arg("options"), nb::arg("q"), nb::arg("k"),
             nb::arg("symbols"), nb::arg("stream"),
             nb::sig("def policy(backend: Backend, options: FlashOmniOptions, q: Array, k: Array, "
                     "symbols: SparseSymbols, stream: int) -> tuple[list[float], list[float]]"));
  module.def("select_symbols", select, nb::arg("backend"), nb::arg("options"), nb::arg("q"),
             nb::arg("k"), nb::arg("words"), nb::arg("scores"), nb::arg("stream"));
}

}  // namespace flashomni::python
