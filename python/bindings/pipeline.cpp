// pipeline.cpp -- prompt to picture.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/pipeline.h"

#include <algorithm>

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "flashomni/engine.h"
#include "flashomni/policy.h"

namespace flashomni::python {
namespace {

using LockedPipeline = Locked<Pipeline>;

std::unique_ptr<Pipeline> load(const std::string& directory, const std::string& backend,
                               int num_threads, DType dtype) {
  nb::gil_scoped_release no_gil;
  BackendOptions options;
  options.num_threads = num_threads;
  return std::make_unique<Pipeline>(
      Pipeline::load(directory, make_backend(backend, options), dtype));
}

// Runs after every step: lets Ctrl-C through, and calls `progress`(step, num_steps, kind, seconds).
void report(const StepProgress& step, nb::handle progress) {
  nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
  if (progress.is_none()) return;
  progress(step.step, step.num_steps, std::string(step_kind_name(step.kind)), step.seconds);
}

GenerateResult generate(LockedPipeline& pipeline, const GenerateRequest& request,
                        const EngineOptions& options, const std::string& policy,
                        const PolicyOptions& policy_options, nb::handle progress) {
  return pipeline.run([&](Pipeline& p) {
    Engine engine(p.backend(), options, make_policy(policy, policy_options));
    return p.generate(request, engine, [&](const StepProgress& step) { report(step, progress); });
  });
}

void copy_picture(const GenerateResult& result, const Array& picture) {
  std::ranges::copy(result.picture.rgb, picture.view.as<std::uint8_t>());
}

nb::list fallbacks(const GenerateResult& result) {
  nb::list all;
  for (const Fallback& fallback : result.fallbacks) {
    all.append(nb::make_tuple(fallback.layer, fallback.reason));
  }
  return all;
}

nb::list op_times(const GenerateResult& result) {
  nb::list all;
  for (const OpTime& op : result.op_times) {
    all.append(nb::make_tuple(op.op, op.seconds, op.macs, op.calls));
  }
  return all;
}

void bind_options(nb::module_& module) {
  nb::class_<GenerateRequest>(module, "GenerateRequest")
      .def(nb::init<>())
      .def_rw("prompt", &GenerateRequest::prompt)
      .def_rw("width", &GenerateRequest::width)
      .def_rw("height", &GenerateRequest::height)
      .def_rw("steps", &GenerateRequest::steps)
      .def_rw("cfg", &GenerateRequest::cfg)
      .def_rw("guidance", &GenerateRequest::guidance)
      .def_rw("seed", &GenerateRequest::seed);
  nb::enum_<ForecastKind>(module, "ForecastKind")
      .value("taylor", ForecastKind::kTaylor)
      .value("newton", ForecastKind::kNewton);
  nb::enum_<TokenOrder>(module, "TokenOrder")
      .value("raster", TokenOrder::kRaster)
      .value("tile", TokenOrder::kTile);
  nb::class_<EngineOptions>(module, "EngineOptions")
      .def(nb::init<>())
      .def_rw("warmup", &EngineOptions::warmup)
      .def_rw("interval", &EngineOptions::interval)
      .def_rw("order", &EngineOptions::order)
      .def_rw("layer_cache", &EngineOptions::layer_cache)
      .def_rw("ramp", &EngineOptions::ramp)
      .def_rw("forecast", &EngineOptions::forecast)
      .def_rw("block_q", &EngineOptions::block_q)
      .def_rw("block_kv", &EngineOptions::block_kv)
      .def_rw("token_order", &EngineOptions::token_order)
      .def_rw("strict", &EngineOptions::strict);
}

void bind_results(nb::module_& module) {
  nb::class_<PipelineDefaults>(module, "PipelineDefaults")
      .def_ro("width", &PipelineDefaults::width)
      .def_ro("height", &PipelineDefaults::height)
      .def_ro("steps", &PipelineDefaults::steps)
      .def_ro("cfg", &PipelineDefaults::cfg)
      .def_ro("guidance", &PipelineDefaults::guidance);
  nb::class_<EngineStats>(module, "EngineStats")
      .def_ro("dense_steps", &EngineStats::dense_steps)
      .def_ro("update_steps", &EngineStats::update_steps)
      .def_ro("dispatch_steps", &EngineStats::dispatch_steps)
      .def_ro("cached_fraction", &EngineStats::cached_fraction)
      .def_ro("skipped_fraction", &EngineStats::skipped_fraction)
      .def_ro("attention_sparsity", &EngineStats::attention_sparsity)
      .def_ro("layers_cached", &EngineStats::layers_cached)
      .def_ro("reused_passes", &EngineStats::reused_passes);
  nb::class_<GenerateResult>(module, "GenerateResult")
      .def("copy_picture", copy_picture, nb::arg("picture"))
      .def_ro("seconds_total", &GenerateResult::seconds_total)
      .def_ro("seconds_denoise", &GenerateResult::seconds_denoise)
      .def_ro("sparsity", &GenerateResult::sparsity)
      .def_ro("macs_total", &GenerateResult::macs_total)
      .def_ro("macs_done", &GenerateResult::macs_done)
      .def_ro("warnings", &GenerateResult::warnings)
      .def_prop_ro("fallbacks", fallbacks, nb::sig("def fallbacks(self) -> list[tuple[int, str]]"))
      .def_prop_ro("op_times", op_times,
                   nb::sig("def op_times(self) -> list[tuple[str, float, float, int]]"));
}

}  // namespace

void bind_pipeline(nb::module_& module) {
  bind_options(module);
  bind_results(module);
  module.def("list_policies", [] {
    std::map<std::string, std::vector<std::string>> options_of;
    for (const PolicyInfo& policy : list_policies()) {
      options_of[policy.name].assign(policy.options.begin(), policy.options.end());
    }
    return options_of;
  });
  nb::class_<LockedPipeline>(module, "Pipeline")
      .def(
          "__init__",
          [](LockedPipeline* self, const std::string& directory, const std::string& backend,
             int num_threads, DType dtype) {
            new (self) LockedPipeline(load(directory, backend, num_threads, dtype));
          },
          nb::arg("directory"), nb::arg("backend"), nb::arg("num_threads"), nb::arg("dtype"))
      .def_prop_ro("defaults", [](const LockedPipeline& p) { return p.constant().defaults(); })
      .def_prop_ro(
          "backend",
          [](const LockedPipeline& p) { return std::string(p.constant().backend().name()); })
      .def("generate", generate, nb::arg("request"), nb::arg("options"), nb::arg("policy"),
           nb::arg("policy_options"), nb::arg("progress").none());
}

}  // namespace flashomni::python
