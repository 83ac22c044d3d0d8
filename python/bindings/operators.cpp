// operators.cpp -- attention and the two projections.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "flashomni/attention.h"
#include "flashomni/error.h"
#include "flashomni/gemm.h"

namespace flashomni::python {
namespace {

// Of AttentionReuse, which only sees them.
struct ReuseTerms {
  std::vector<ConstTensorView> terms;
  std::vector<float> coefficients;
};

ReuseTerms make_reuse(const std::vector<const Array*>& terms, std::vector<float> coefficients) {
  ReuseTerms reuse{{}, std::move(coefficients)};
  std::ranges::transform(terms, std::back_inserter(reuse.terms), &view_or_none);
  return reuse;
}

void attention(LockedBackend& backend, const AttentionPlan& plan, const Array& q, const Array& k,
               const Array& v, float scale, const Array& out, const Array* lse,
               const ReuseTerms& reuse, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    flashomni::attention(b, plan, q.view, k.view, v.view, scale, out.view, view_or_none(lse),
                         stream_of(stream), {reuse.terms, reuse.coefficients});
  });
}

NormRope make_norm_rope(const Array* norm_weight, float eps, const Array* cos, const Array* sin) {
  return {view_or_none(norm_weight), eps, view_or_none(cos), view_or_none(sin)};
}

void gemm_q(LockedBackend& backend, const GemmPlan& plan, const Array& x,
            const PackedWeight& weight, const Array* bias, const NormRope& epilogue,
            const Array& out, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    flashomni::gemm_q(b, plan, x.view, weight, view_or_none(bias), epilogue, out.view,
                      stream_of(stream));
  });
}

// Where a projection goes: `out`, or `residual` through `gate`.
struct Destination {
  const Array *out, *residual, *gate;
};

OutputProjection make_projection(const PackedWeight& weight, const Array* bias, const Array& o,
                                 const Array* mlp, const Destination& to) {
  return {&weight,
          view_or_none(bias),
          o.view,
          view_or_none(mlp),
          view_or_none(to.out),
          view_or_none(to.residual),
          view_or_none(to.gate)};
}

BiasCacheView make_bias_cache(const std::vector<const Array*>& terms, const Array& valid_order) {
  if (terms.empty() || terms.size() > kMaxForecastOrder + 1) {
    throw Error(ErrorCode::kInvalidArgument,
                "bias_cache has " + std::to_string(terms.size()) + " terms, allowed are 1 to 3");
  }
  BiasCacheView cache;
  cache.order = static_cast<int>(terms.size()) - 1;
  std::ranges::transform(terms, cache.terms, &view_or_none);
  cache.valid_order = valid_order.view;
  return cache;
}

void gemm_o_update(LockedBackend& backend, const GemmPlan& plan, const OutputProjection& projection,
                   float steps_since_update, const BiasCacheView& cache, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    flashomni::gemm_o_update(b, plan, projection, steps_since_update, cache, stream_of(stream));
  });
}

void gemm_o_dispatch(LockedBackend& backend, const GemmPlan& plan,
                     const OutputProjection& projection, const std::vector<float>& coefficients,
                     const BiasCacheView& cache, std::uintptr_t stream) {
  backend.run([&](Backend& b) {
    flashomni::gemm_o_dispatch(b, plan, projection, coefficients, cache, stream_of(stream));
  });
}

void bind_gemm_arguments(nb::module_& module) {
  nb::class_<NormRope>(module, "NormRope")
      .def(
          "__init__",
          [](NormRope* self, const Array* norm_weight, float eps, const Array* cos,
             const Array* sin) { new (self) NormRope(make_norm_rope(norm_weight, eps, cos, sin)); },
          nb::arg("norm_weight").none(), nb::arg("eps"), nb::arg("cos").none(),
          nb::arg("sin").none(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>(),
          nb::keep_alive<1, 5>());
  nb::class_<OutputProjection>(module, "OutputProjection")
      .def(
          "__init__",
          [](OutputProjection* self, const PackedWeight& weight, const Array* bias, const Array& o,
             const Array* mlp, const Array* out, const Array* residual, const Array* gate) {
            new (self)
                OutputProjection(make_projection(weight, bias, o, mlp, {out, residual, gate}));
          },
          nb::arg("weight"), nb::arg("bias").none(), nb::arg("o"), nb::arg("mlp").none(),
          nb::arg("out").none(), nb::arg("residual").none(), nb::arg("gate").none(),
          nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
          nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(),
          nb::keep_alive<1, 8>());
  nb::class_<BiasCacheView>(module, "BiasCacheView")
      .def(
          "__init__",
          [](BiasCacheView* self, const std::vector<const Array*>& terms,
             const Array& valid_order) {
            new (self) BiasCacheView(make_bias_cache(terms, valid_order));
          },
          nb::arg("terms"), nb::arg("valid_order"));
}

}  // namespace

void bind_operators(nb::module_& module) {
  nb::class_<ReuseTerms>(module, "AttentionReuse")
      .def(
          "__init__",
          [](ReuseTerms* self, const std::vector<const Array*>& terms,
             const std::vector<float>& coefficients) {
            new (self) ReuseTerms(make_reuse(terms, coefficients));
          },
          nb::arg("terms"), nb::arg("coefficients"));
  bind_gemm_arguments(module);
  module.def("attention", attention, nb::arg("backend"), nb::arg("plan"), nb::arg("q"),
             nb::arg("k"), nb::arg("v"), nb::arg("scale"), nb::arg("out"), nb::arg("lse").none(),
             nb::arg("reuse"), nb::arg("stream"));
  module.def("gemm_q", gemm_q, nb::arg("backend"), nb::arg("plan"), nb::arg("x"), nb::arg("weight"),
             nb::arg("bias").none(), nb::arg("epilogue"), nb::arg("out"), nb::arg("stream"));
  module.def("gemm_o_update", gemm_o_update, nb::arg("backend"), nb::arg("plan"),
             nb::arg("projection"), nb::arg("steps_since_update"), nb::arg("cache"),
             nb::arg("stream"));
  module.def("gemm_o_dispatch", gemm_o_dispatch, nb::arg("backend"), nb::arg("plan"),
             nb::arg("projection"), nb::arg("coefficients"), nb::arg("cache"), nb::arg("stream"));
}

}  // namespace flashomni::python
