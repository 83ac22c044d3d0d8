// predict.cpp -- `flashomni predict`: what a sparse run will cost, before it is run.
//
// Rates come from one dense step at the wanted size, so that they are this machine's at these
// shapes. How much the policy leaves out depends on the picture and cannot be computed: five steps
// without guidance are drawn with the same settings, of which one is a dispatch, and its shares
// are taken for every dispatch step.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>

#include "commands.h"
#include "generation.h"
#include "machine.h"
#include "progress.h"
#include "text.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

struct PredictArguments {
  ModelArguments model;
  SparsityArguments sparsity;
  std::string prompt = "a snail in a green field";
  bool json = false, verbose = false;
};

OpTime op_of(const GenerateResult& result, const std::string& name) {
  for (const OpTime& op : result.op_times) {
    if (op.op == name) return op;
  }
  return {};
}

// The faster of two dense runs of one step.
GenerateResult one_step(Session& session) {
  const int steps = session.request.steps;
  session.request.steps = 1;
  warm_up(session);
  GenerateResult best = draw_silently(session, dense_sparsity());
  GenerateResult again = draw_silently(session, dense_sparsity());
  session.request.steps = steps;
  return again.seconds_denoise < best.seconds_denoise ? std::move(again) : std::move(best);
}

// A short run with one dispatch step: dense, dense, update, dispatch, dense.
struct Probe {
  static constexpr int kSteps = 5, kFull = 4;
  GenerateResult run;
};

Probe probe(Session& session, Sparsity sparsity) {
  const GenerateRequest whole = session.request;
  session.request.steps = Probe::kSteps;
  session.request.cfg = 1;
  sparsity.engine.warmup = 3;
  sparsity.engine.interval = 2;
  Probe probe{draw_silently(session, sparsity)};
  session.request = whole;
  return probe;
}

struct CacheBytes {
  double bias = 0, modules = 0;  // `modules`: at most, as if double-stream layers came first
};

// Of the image tokens; a few text tokens come on top. Terms are f32: the bias cache of every layer
// and branch, and the modules of layers cached whole (attention and MLP apart in a double-stream
// block, one output in a single-stream one).
CacheBytes cache_bytes(const Session& session, const Sparsity& sparsity, double tokens,
                       int layers_cached) {
  if (sparsity.policy == "dense") return {};
  const FluxConfig& config = session.pipeline.config();
  const int branches = session.request.cfg == 1 ? 1 : 2;
  const double term = 4.0 * tokens * config.hidden_dim() * (sparsity.engine.order + 1) * branches;
  const int in_double = std::min(layers_cached, config.num_layers);
  return {term * config.total_layers(), term * (layers_cached + in_double)};
}

struct Prediction {
  GenerateResult step;  // dense, at the wanted size, every branch
  Probe probe;
  int branches = 1, full_steps = 0, updates = 0, dispatches = 0;
  double dense_seconds = 0, dense_macs = 0, seconds = 0, macs = 0;
  CacheBytes caches;

  // Shares of a dense step's work, or of its time where no work is counted, in one operator.
  // Policies that leave something out on updates leave nothing to do on dispatch steps, so that
  // one sum tells both.
  struct Left {
    double update = 1, dispatch = 0;
  };
  Left left(const std::string& name) const {
    const OpTime dense = op_of(step, name), run = op_of(probe.run, name);
    const double unit = (dense.macs > 0 ? dense.macs : dense.seconds) / branches;
    if (unit <= 0) return {};
    const double beyond = (dense.macs > 0 ? run.macs : run.seconds) / unit - Probe::kFull;
    return {dense.macs > 0 ? std::clamp(1 + beyond, 0.0, 1.0) : 1.0, std::clamp(beyond, 0.0, 1.0)};
  }
};

void count_steps(Prediction& prediction, const GenerateRequest& request, const Sparsity& sparsity) {
  const auto kinds =
      sparsity.policy == "dense"
          ? std::vector<StepKind>(request.steps, StepKind::kDense)
          : classify_steps(request.steps, sparsity.engine.warmup, sparsity.engine.interval);
  prediction.updates = static_cast<int>(std::ranges::count(kinds, StepKind::kUpdate));
  prediction.dispatches = static_cast<int>(std::ranges::count(kinds, StepKind::kDispatch));
  prediction.full_steps = request.steps - prediction.dispatches;
}

void add_operators(Prediction& prediction, int steps) {
  double of_ops = 0;
  for (const OpTime& op : prediction.step.op_times) {
    of_ops += op.seconds;
    if (op.op == "policy") continue;
    const Prediction::Left left = prediction.left(op.op);
    const double times = prediction.full_steps - prediction.updates * (1 - left.update) +
                         prediction.dispatches * left.dispatch;
    prediction.seconds += op.seconds * times;
    prediction.macs += op.macs * times;
  }
  const OpTime policy = op_of(prediction.probe.run, "policy");  // of one update and branch
  prediction.seconds += policy.seconds * prediction.updates * prediction.branches;
  prediction.macs += policy.macs * prediction.updates * prediction.branches;
  // What a step takes outside every operator is taken again by every step.
  prediction.seconds += (prediction.step.seconds_denoise - of_ops) * steps;
}

Prediction predict(Session& session, const Sparsity& sparsity) {
  Prediction prediction;
  const GenerateRequest& request = session.request;
  prediction.branches = request.cfg == 1 ? 1 : 2;
  prediction.step = one_step(session);
  prediction.dense_seconds = prediction.step.seconds_denoise * request.steps;
  prediction.dense_macs = prediction.step.macs_done * request.steps;
  prediction.probe = probe(session, sparsity);
  count_steps(prediction, request, sparsity);
  add_operators(prediction, request.steps);
  const auto tokens = static_cast<double>(prediction.step.latents.size(0));
  prediction.caches =
      cache_bytes(session, sparsity, tokens, prediction.probe.run.sparsity.layers_cached);
  return prediction;
}

double peak_gflops(const Session& session, const ModelArguments& arguments) {
  if (session.pipeline.backend().name() != "cpu") return 0;
  const int threads = arguments.backend.threads > 0 ? arguments.backend.threads : available_cores();
  return measure_cpu_peak("auto", session.dtype, threads);
}

ordered_json rates_of(const Prediction& prediction, double peak) {
  ordered_json rates = ordered_json::array();
  for (const OpTime& op : prediction.step.op_times) {
    const double gflops = op.seconds > 0 ? 2e-9 * op.macs / op.seconds : 0;
    rates.push_back({{"op", op.op},
                     {"share_of_dense_time", op.seconds / prediction.step.seconds_denoise},
                     {"gflops", gflops},
                     {"share_of_peak", peak > 0 ? ordered_json(gflops / peak) : ordered_json()},
                     {"left_on_update", prediction.left(op.op).update},
                     {"left_on_dispatch", prediction.left(op.op).dispatch}});
  }
  return rates;
}

std::vector<std::string> reasons(const Prediction& prediction, const GenerateRequest& request) {
  const double steps = request.steps, full = prediction.full_steps;
  const double attention =
      op_of(prediction.step, "attention").seconds / prediction.step.seconds_denoise;
  const double idle = (steps - full) / steps;
  std::vector<std::string> sentences = {
      print("%g of %g steps are full: if the others cost nothing, the run would be %.2f times as "
            "fast as dense.",
            full, steps, steps / full),
      print("Attention takes %.0f %% of a dense step: skipping all of it on the other steps, and "
            "nothing else, gives at most %.2f times.",
            100 * attention, 1 / (1 - idle * attention))};
  if (full == steps) {
    sentences = {"Every step is full: nothing will be left out."};
  }
  return sentences;
}

ordered_json to_json(const Session& session, const Sparsity& sparsity, const Prediction& prediction,
                     double peak) {
  const GenerateRequest& request = session.request;
  const EngineStats& stats = prediction.probe.run.sparsity;
  return {{"width", request.width},
          {"height", request.height},
          {"steps", request.steps},
          {"cfg", request.cfg},
          {"preset", sparsity.preset},
          {"policy", sparsity.policy},
          {"dense", {{"seconds", prediction.dense_seconds}, {"macs", prediction.dense_macs}}},
          {"sparse", {{"seconds", prediction.seconds}, {"macs", prediction.macs}}},
          {"macs_ratio", prediction.macs / prediction.dense_macs},
          {"speedup", prediction.dense_seconds / prediction.seconds},
          {"full_steps", prediction.full_steps},
          {"dispatch_steps", prediction.dispatches},
          {"schedule_bound", static_cast<double>(request.steps) / prediction.full_steps},
          {"cache_bytes",
           {{"bias", prediction.caches.bias}, {"modules_at_most", prediction.caches.modules}}},
          {"peak_gflops", peak > 0 ? ordered_json(peak) : ordered_json()},
          {"operators", rates_of(prediction, peak)},
          {"probe",
           {{"seconds", prediction.probe.run.seconds_total},
            {"cached_fraction", stats.cached_fraction},
            {"skipped_fraction", stats.skipped_fraction},
            {"layers_cached", stats.layers_cached}}},
          {"why", reasons(prediction, request)}};
}

void print_prediction(const ordered_json& record, bool verbose) {
  const auto number = [&](const char* object, const char* key) {
    return record[object][key].get<double>();
  };
  std::cout << print(
      "%d x %d pixels, %d steps: dense %.2f s, sparse %.2f s, %.2f times as fast, at %.2f of the "
      "multiply-adds (%.0f of %.0f G).\nThe caches take %.1f MB, layers cached whole at most %.1f "
      "MB more.\n",
      record["width"].get<int>(), record["height"].get<int>(), record["steps"].get<int>(),
      number("dense", "seconds"), number("sparse", "seconds"), record["speedup"].get<double>(),
      record["macs_ratio"].get<double>(), 1e-9 * number("sparse", "macs"),
      1e-9 * number("dense", "macs"), 1e-6 * number("cache_bytes", "bias"),
      1e-6 * number("cache_bytes", "modules_at_most"));
  for (const ordered_json& sentence : record["why"]) {
    std::cout << sentence.get<std::string>() << "\n";
  }
  if (!verbose) return;
  std::cout << print("%-10s %9s %9s %9s %7s\n", "op", "of dense", "GFLOP/s", "of peak", "left");
  for (const ordered_json& op : record["operators"]) {
    const std::string peak =
        op["share_of_peak"].is_null() ? "-" : print("%.2f", op["share_of_peak"].get<double>());
    std::cout << print("%-10s %8.1f%% %9.0f %9s %7.2f\n", op["op"].get<std::string>().c_str(),
                       100 * op["share_of_dense_time"].get<double>(), op["gflops"].get<double>(),
                       peak.c_str(), op["left_on_dispatch"].get<double>());
  }
  std::cout << print("What a dispatch step leaves was seen in a run of %d steps, %.2f s.\n",
                     Probe::kSteps, number("probe", "seconds"));
}

void run(const PredictArguments& arguments) {
  const Sparsity sparsity = resolve_sparsity(arguments.sparsity);
  check_policy(sparsity);
  Session session = open_model(arguments.model);
  session.request.prompt = arguments.prompt;
  say("Measuring one dense step, then what a dispatch step leaves");
  const Prediction prediction = predict(session, sparsity);
  const double peak = peak_gflops(session, arguments.model);
  const ordered_json record = to_json(session, sparsity, prediction, peak);
  if (arguments.json) {
    std::cout << record.dump(2) << "\n";
  } else {
    print_prediction(record, arguments.verbose);
  }
}

}  // namespace

void add_predict(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<PredictArguments>();
  CLI::App* command = app.add_subcommand(
      "predict", "work, time and memory of a sparse run before it is run, and what bounds it");
  command->add_option("-p,--prompt", arguments->prompt, "for the steps that are tried")
      ->capture_default_str();
  add_model_options(*command, arguments->model);
  add_sparsity_options(*command, arguments->sparsity);
  command->add_flag("--json", arguments->json, "one JSON object on stdout");
  command->add_flag("-v,--verbose", arguments->verbose, "the rates behind it");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
