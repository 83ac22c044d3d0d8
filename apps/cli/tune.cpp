// tune.cpp -- `flashomni tune`: finds a preset for a model and a size, and writes what was measured
// into it. The search is in tuner.cpp.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>

#include "commands.h"
#include "flashomni/error.h"
#include "number_checks.h"
#include "text.h"
#include "tuner.h"
#include "version.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

std::string target_text(const TuneArguments& arguments) {
  return arguments.target_psnr ? print("PSNR of at least %g dB", *arguments.target_psnr)
                               : print("speed-up of at least %g", *arguments.target_speedup);
}

// NaN, of settings that leave nothing of a kind, becomes null.
ordered_json to_json(const Proxy& proxy) {
  const auto number = [](double value) {
    return std::isnan(value) ? ordered_json() : ordered_json(value);
  };
  return {{"recall", number(proxy.recall)},
          {"forecast_error", number(proxy.forecast_error)},
          {"loss", proxy.loss},
          {"macs_ratio", proxy.macs_ratio}};
}

// A preset that --preset reads, with what was measured under "evidence".
ordered_json make_preset(const TuneArguments& arguments, const Session& session, const Tuner& tuner,
                         const Candidate& chosen) {
  const Sparsity& sparsity = chosen.setting.sparsity;
  ordered_json preset = {
      {"description", "Found by flashomni tune: " + target_text(arguments) + "."},
      {"sparsity-policy", sparsity.policy},
      {"warmup", sparsity.engine.warmup},
      {"interval", sparsity.engine.interval},
      {"order", sparsity.engine.order},
      {"layer-cache", sparsity.engine.layer_cache},
      {"ramp", sparsity.engine.ramp},
      {"block", sparsity.engine.block_q}};
  for (const auto& [name, value] : sparsity.policy_options) preset[name] = value;
  ordered_json evidence = facts_of(session);
  evidence["commit"] = kCommit;
  evidence["target"] = target_text(arguments);
  evidence["clock"] = arguments.clock;
  for (const char* key : {"pairs", "psnr_db", "ssim", "captions", "macs_ratio", "speedup",
                          "seconds", "dense_seconds", "worst"}) {
    evidence[key] = chosen.full[key];
  }
  evidence["cliffs"] = tuner.cliffs(chosen);
  evidence["tried_in_full"] = ordered_json::array();
  for (const Candidate& candidate : tuner.grid()) {
    if (candidate.full.is_null()) continue;
    evidence["tried_in_full"].push_back({{"options", candidate.full["options"]},
                                         {"psnr_db", candidate.confirmed().psnr_db},
                                         {"macs_ratio", candidate.full["macs_ratio"]["mean"]},
                                         {"speedup", candidate.confirmed().speedup},
                                         {"proxy", to_json(candidate.proxy)}});
  }
  evidence["proxy"] = tuner.proxy_facts();
  preset["evidence"] = evidence;
  return preset;
}

void print_preset(const TuneArguments& arguments, const ordered_json& preset) {
  const ordered_json& evidence = preset["evidence"];
  std::cout << print(
      "Wrote %s: W %d, N %d, %.1f dB (worst %.1f) at %.2f of the work, %.2f times "
      "as fast, on %d prompts; %zu settings run in full.\n",
      arguments.out.c_str(), preset["warmup"].get<int>(), preset["interval"].get<int>(),
      evidence["psnr_db"]["mean"].get<double>(), evidence["psnr_db"]["min"].get<double>(),
      evidence["macs_ratio"]["mean"].get<double>(), evidence["speedup"]["mean"].get<double>(),
      evidence["pairs"].get<int>(), evidence["tried_in_full"].size());
  for (const ordered_json& cliff : evidence["cliffs"]) {
    std::cout << cliff.get<std::string>() << "\n";
  }
}

void run(const TuneArguments& arguments) {
  if (arguments.target_psnr.has_value() == arguments.target_speedup.has_value()) {
    throw UsageError("tune needs either --target-psnr or --target-speedup");
  }
  parse_budget(arguments.budget);
  const std::filesystem::path folder = std::filesystem::path(arguments.out).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    throw UsageError("--out: there is no folder " + folder.string());
  }
  Session session = open_model(arguments.model);
  Tuner tuner(arguments, session);
  const Candidate* chosen = tuner.search();
  if (!chosen) {
    throw Error(ErrorCode::kUnsupported,
                "tune: nothing tried has a " + target_text(arguments) +
                    (tuner.out_of_time() ? "; the budget is used up" : "; the grid is used up"));
  }
  const ordered_json preset = make_preset(arguments, session, tuner, *chosen);
  std::ofstream file(arguments.out);
  file << preset.dump(2) << "\n";
  if (!file.flush()) throw Error(ErrorCode::kIo, arguments.out + " could not be written");
  if (arguments.json) {
    std::cout << preset.dump(2) << "\n";
  } else {
    print_preset(arguments, preset);
  }
}

}  // namespace

void add_tune(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<TuneArguments>();
  CLI::App* command =
      app.add_subcommand("tune", "finds a preset for a model and size that meets a target");
  command
      ->add_option("--target-psnr", arguments->target_psnr,
                   "dB on average to the dense pictures; the fastest preset that has it")
      ->check(kPositive);
  command
      ->add_option("--target-speedup", arguments->target_speedup,
                   "times as fast as dense; the preset nearest to dense that has it")
      ->check(kPositive);
  command->add_option("--budget", arguments->budget, "time to take: 90s, 10m, 1h")
      ->capture_default_str();
  command->add_option("--prompts", arguments->prompts,
                      "as of eval; default the model's held-out captions");
  command->add_option("--count", arguments->count, "prompts of a full run")
      ->check(kPositive)
      ->capture_default_str();
  command->add_option("--folder", arguments->folder, "for the runs; finished ones are not repeated")
      ->capture_default_str();
  command->add_option("-o,--out", arguments->out, "preset to write")->capture_default_str();
  command->add_option("--clock", arguments->clock, "what seconds count: wall, or cpu time")
      ->check(CLI::IsMember({"wall", "cpu"}))
      ->capture_default_str();
  add_model_options(*command, arguments->model);
  command->add_flag("--json", arguments->json, "the preset on stdout too");
  command->add_flag("-v,--verbose", arguments->verbose, "say what each run gave");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
