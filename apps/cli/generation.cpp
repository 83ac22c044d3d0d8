#include "generation.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "commands.h"
#include "flashomni/error.h"
#include "machine.h"
#include "progress.h"

namespace flashomni::cli {
namespace {

// bf16 where it is faster: a CPU with AVX512_BF16, a GPU.
DType choose_dtype(const std::string& wanted, const Backend& backend) {
  if (wanted != "auto") return parse_dtype(wanted, "--dtype");
  if (backend.device().type == DeviceType::kCuda) return DType::kBF16;
  return backend.name() == "cpu" && has_native_bf16() ? DType::kBF16 : DType::kF32;
}

// What the library rejects here came from the command line.
template <typename F>
auto as_usage(F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) throw UsageError(error.what());
    throw;
  }
}

// Of a replayed run, if there is one, and else without a prompt.
GenerateRequest make_request(const ModelArguments& arguments, const PipelineDefaults& defaults,
                             const RunRecord* replay) {
  GenerateRequest request{.prompt = {},
                          .width = defaults.width,
                          .height = defaults.height,
                          .steps = defaults.steps,
                          .cfg = defaults.cfg,
                          .guidance = defaults.guidance,
                          .seed = 0};
  if (replay) request = replay->request;
  request.width = arguments.width.value_or(request.width);
  request.height = arguments.height.value_or(request.height);
  request.steps = arguments.steps.value_or(request.steps);
  request.cfg = arguments.cfg.value_or(request.cfg);
  request.guidance = arguments.guidance.value_or(request.guidance);
  return request;
}

std::string percent(double fraction) {
  char text[16];
  std::snprintf(text, sizeof text, "%.0f %%", 100 * fraction);
  return text;
}

}  // namespace

std::filesystem::path find_model(const std::string& wanted) {
  namespace fs = std::filesystem;
  const fs::path path = wanted.empty() ? find_shipped("models/flux-mini") : fs::path(wanted);
  if (path.empty()) {
    throw UsageError(
        "there is no model: models/flux-mini is neither here nor beside the program nor under its "
        "install prefix; name one with -m");
  }
  if (!fs::exists(path / "model_index.json")) {
    throw UsageError("-m: " + path.string() + " has no model_index.json");
  }
  return path;
}

void add_model_options(CLI::App& command, ModelArguments& arguments) {
  command.add_option("-m,--model", arguments.model,
                     "folder with model_index.json; default models/flux-mini");
  command.add_option("-W,--width", arguments.width, "pixels; default of the model");
  command.add_option("-H,--height", arguments.height, "pixels; default of the model");
  command.add_option("--steps", arguments.steps, "denoising steps; default of the model");
  command.add_option("--cfg", arguments.cfg,
                     "true classifier-free guidance, 1 = off; default of the model");
  command.add_option("--guidance", arguments.guidance,
                     "value for the guidance embedder; default of the model");
  command.add_option("--dtype", arguments.dtype, "auto, f32 or bf16")->capture_default_str();
  add_backend_options(command, arguments.backend);
}

void add_generation_options(CLI::App& command, GenerationArguments& arguments) {
  command.add_option("-p,--prompt", arguments.prompt, "what to draw");
  add_model_options(command, arguments);
  command.add_option("-s,--seed", arguments.seed, "of the noise; default 0");
  command.add_option("-o,--out", arguments.out, "PNG file to write")->capture_default_str();
  add_sparsity_options(command, arguments.sparsity);
  add_recording_options(command, arguments.recording);
  command.add_flag("--json", arguments.json, "one JSON object on stdout");
  command.add_flag("-v,--verbose", arguments.verbose, "where the time went");
}

Session open_model(const ModelArguments& arguments, const RunRecord* replay) {
  const std::filesystem::path model = find_model(arguments.model);
  std::unique_ptr<Backend> backend = make_backend(arguments.backend);
  const bool as_recorded = replay && arguments.dtype == "auto";
  const DType dtype =
      choose_dtype(as_recorded ? replay->settings.dtype : arguments.dtype, *backend);
  say("Loading " + model.string() + " in " + std::string(dtype_name(dtype)) + " on " +
      std::string(backend->name()) + " (" + backend->description() + ")");
  Session session{Pipeline::load(model, std::move(backend), dtype), model, dtype, {}};
  session.request = make_request(arguments, session.pipeline.defaults(), replay);
  return session;
}

Session open_session(const GenerationArguments& arguments, const RunRecord* replay) {
  const std::filesystem::path folder = std::filesystem::path(arguments.out).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    throw UsageError("--out: there is no folder " + folder.string());
  }
  if (arguments.prompt.empty() && !replay) throw UsageError("--prompt is required");
  Session session = open_model(arguments, replay);
  if (!arguments.prompt.empty()) session.request.prompt = arguments.prompt;
  session.request.seed = arguments.seed.value_or(session.request.seed);
  if (replay) as_usage([&] { check_replay(*replay, session.pipeline, session.request); });
  return session;
}

void warm_up(Session& session) {
  as_usage([&] { session.pipeline.warm_up(session.request); });
}

GenerateResult draw(Session& session, const Sparsity& sparsity, const std::string& label,
                    RunRecord* record) {
  const auto engine = make_engine(session.pipeline.backend(), sparsity);
  Progress progress(label, session.request.steps);
  const auto show = [&](const StepProgress& step) {
    progress.show(step.step + 1, std::string(step_kind_name(step.kind)));
  };
  return as_usage(
      [&] { return session.pipeline.generate(session.request, *engine, show, {}, record); });
}

GenerateResult draw_silently(Session& session, const Sparsity& sparsity) {
  const auto engine = make_engine(session.pipeline.backend(), sparsity);
  return as_usage([&] { return session.pipeline.generate(session.request, *engine); });
}

nlohmann::ordered_json to_json(const Session& session, const Sparsity& sparsity,
                               const GenerateResult& result, const std::string& out) {
  nlohmann::ordered_json fallbacks = nlohmann::ordered_json::array();
  for (const Fallback& fallback : result.fallbacks) {
    fallbacks.push_back({{"layer", fallback.layer}, {"reason", fallback.reason}});
  }
  nlohmann::ordered_json op_times = nlohmann::ordered_json::array();
  for (const OpTime& op : result.op_times) {
    op_times.push_back(
        {{"op", op.op}, {"seconds", op.seconds}, {"macs", op.macs}, {"calls", op.calls}});
  }
  const GenerateRequest& request = session.request;
  const EngineStats& stats = result.sparsity;
  return {{"prompt", request.prompt},
          {"model", session.model.string()},
          {"seed", request.seed},
          {"width", request.width},
          {"height", request.height},
          {"steps", request.steps},
          {"cfg", request.cfg},
          {"guidance", request.guidance},
          {"seconds_total", result.seconds_total},
          {"seconds_denoise", result.seconds_denoise},
          {"backend", session.pipeline.backend().name()},
          {"dtype", dtype_name(session.dtype)},
          {"out", out},
          {"sparsity",
           {{"policy", sparsity.policy},
            {"preset", sparsity.preset},
            {"dense_steps", stats.dense_steps},
            {"update_steps", stats.update_steps},
            {"dispatch_steps", stats.dispatch_steps},
            {"cached_fraction", stats.cached_fraction},
            {"skipped_fraction", stats.skipped_fraction},
            {"attention_sparsity", stats.attention_sparsity},
            {"layers_cached", stats.layers_cached},
            {"reused_passes", stats.reused_passes},
            {"macs_total", result.macs_total},
            {"macs_done", result.macs_done},
            {"fallbacks", fallbacks}}},
          {"op_times", op_times},
          {"warnings", result.warnings}};
}

std::string parameters_text(const Session& session, const Sparsity& sparsity) {
  const GenerateRequest& request = session.request;
  std::ostringstream text;
  text << request.prompt << "\nSteps: " << request.steps
       << ", Sampler: Euler, CFG scale: " << request.cfg << ", Guidance: " << request.guidance
       << ", Seed: " << request.seed << ", Size: " << request.width << "x" << request.height
       << ", Model: " << session.model.filename().string()
       << ", Dtype: " << dtype_name(session.dtype) << ", Preset: " << sparsity.preset
       << ", Sparsity policy: " << sparsity.policy;
  if (sparsity.policy != "dense") text << " (" << describe_options(sparsity) << ")";
  return text.str();
}

void print_sparsity(const Sparsity& sparsity, const GenerateResult& result) {
  for (const std::string& warning : result.warnings) std::cout << "Note: " << warning << "\n";
  if (sparsity.policy == "dense") {
    std::cout << "Everything was computed (policy dense).\n";
  } else {
    const EngineStats& stats = result.sparsity;
    std::cout << "Preset " << sparsity.preset << ", policy " << sparsity.policy << " ("
              << describe_options(sparsity) << "); --preset off computes everything.\n"
              << stats.dense_steps << " steps were dense, " << stats.update_steps << " update, "
              << stats.dispatch_steps << " dispatch; " << percent(stats.attention_sparsity)
              << " of the attention and "
              << percent(result.macs_total > 0 ? 1 - result.macs_done / result.macs_total : 0)
              << " of all multiply-adds were left out.\n";
  }
  for (const Fallback& fallback : result.fallbacks) {
    std::cout << (fallback.layer < 0 ? "Note: " : "Layer " + std::to_string(fallback.layer) + ": ")
              << fallback.reason << ".\n";
  }
}

double kernel_share(const GenerateResult& result) {
  double seconds = 0;
  for (const OpTime& op : result.op_times) {
    const bool kernel =
        op.op == "attention" || op.op == "gemm_q" || op.op == "gemm_o" || op.op == "linear";
    if (kernel) seconds += op.seconds;
  }
  return result.seconds_denoise > 0 ? seconds / result.seconds_denoise : 0;
}

void print_op_times(const GenerateResult& result) {
  char line[120];
  std::snprintf(line, sizeof line, "%-10s %9s %7s %9s %10s\n", "op", "seconds", "share", "calls",
                "GFLOP/s");
  std::cout << line;
  for (const OpTime& op : result.op_times) {
    std::snprintf(line, sizeof line, "%-10s %9.3f %6.1f%% %9lld", op.op.c_str(), op.seconds,
                  result.seconds_denoise > 0 ? 100 * op.seconds / result.seconds_denoise : 0,
                  static_cast<long long>(op.calls));
    std::cout << line;
    if (op.macs > 0 && op.seconds > 0) {
      std::snprintf(line, sizeof line, " %10.0f", 2e-9 * op.macs / op.seconds);
      std::cout << line;
    }
    std::cout << "\n";
  }
  std::cout << "Attention and matrix products take " << percent(kernel_share(result))
            << " of the denoising time.\n";
}

}  // namespace flashomni::cli
