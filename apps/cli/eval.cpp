// eval.cpp -- `flashomni eval`: dense against any number of sparse settings over a list of prompts.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <memory>

#include "captions.h"
#include "commands.h"
#include "eval_marks.h"
#include "eval_report.h"
#include "eval_runs.h"
#include "flashomni/error.h"
#include "flashomni/png.h"
#include "generation.h"
#include "number_checks.h"

namespace flashomni::cli {
namespace {

constexpr int kWorstShown = 3;

struct EvalArguments {
  ModelArguments model;
  std::string prompts, settings_file, out = "out/eval", clock = "wall";
  std::vector<std::string> settings;
  int first = 0, count = 8, seeds = 1;
  bool json = false, verbose = false, strict = false;
};

std::vector<Setting> collect_settings(const EvalArguments& arguments) {
  std::vector<Setting> settings;
  if (!arguments.settings_file.empty()) settings = read_settings(arguments.settings_file);
  for (const std::string& text : arguments.settings) settings.push_back(parse_setting(text));
  if (settings.empty()) settings = {parse_setting("balanced"), parse_setting("fast")};
  for (std::size_t i = 0; i < settings.size(); ++i) {
    settings[i].sparsity.engine.strict = arguments.strict;
    check_policy(settings[i].sparsity);
    for (std::size_t j = 0; j < i; ++j) {
      if (settings[i].name != settings[j].name) continue;
      throw UsageError("--setting: the name '" + settings[i].name + "' is there twice");
    }
  }
  return settings;
}

std::vector<Caption> collect_captions(const EvalArguments& arguments,
                                      const std::filesystem::path& model) {
  std::filesystem::path path = arguments.prompts;
  if (path.empty()) path = model / "heldout" / "captions.json";
  std::vector<Caption> captions = read_captions(path, "--prompts");
  if (arguments.first >= static_cast<int>(captions.size())) {
    throw UsageError("--first: " + path.string() + " holds only " +
                     std::to_string(captions.size()) + " prompts");
  }
  captions.erase(captions.begin(), captions.begin() + arguments.first);
  if (captions.size() > static_cast<std::size_t>(arguments.count)) {
    captions.resize(arguments.count);
  }
  return captions;
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  if (!file.flush()) throw Error(ErrorCode::kIo, path.string() + " could not be written");
}

void write_report(const EvalStore& store, const std::vector<EvaluatedSetting>& evaluated,
                  const nlohmann::ordered_json& summary) {
  const std::filesystem::path& folder = store.folder();
  write_text(folder / "summary.json", summary.dump(1) + "\n");
  write_text(folder / "report.md", to_markdown(summary));
  write_text(folder / "psnr-over-work.svg", to_plot(summary, PlotAxis::kWork));
  write_text(folder / "psnr-over-seconds.svg", to_plot(summary, PlotAxis::kSeconds));
  write_png(folder / "worst.png", worst_cases(store, evaluated, kWorstShown));
}

void run(const EvalArguments& arguments) {
  const std::vector<Setting> settings = collect_settings(arguments);
  Session session = open_model(arguments.model);
  const std::vector<Caption> captions = collect_captions(arguments, session.model);
  const nlohmann::ordered_json facts = facts_of(session);
  EvalStore store(arguments.out, facts);
  const std::vector<EvalJob> jobs = list_jobs(captions, arguments.first, arguments.seeds);
  run_missing(session, store, settings, jobs, arguments.verbose);
  std::vector<EvaluatedSetting> evaluated = pair_up(store, settings, jobs);
  std::vector<std::string> notes = mark_captions(store, session.model, jobs, evaluated);
  for (const std::string& note : mark_lpips(store, evaluated)) notes.push_back(note);
  const Clock clock = arguments.clock == "cpu" ? Clock::kCpu : Clock::kWall;
  const nlohmann::ordered_json summary = summarise(facts, evaluated, clock, notes);
  write_report(store, evaluated, summary);
  if (arguments.json) {
    std::cout << summary.dump(2) << "\n";
  } else {
    std::cout << to_markdown(summary) << "\nWrote summary.json, report.md, two plots and worst.png "
              << "into " << arguments.out << ".\n";
  }
}

}  // namespace

void add_eval(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand(
      "eval", "dense against sparse settings over many prompts: likeness, captions, work, time");
  command
      ->add_option(
          "--setting", arguments->settings,
          "[NAME=]BASE[,option=value]..., BASE a preset, FILE.json or a policy; any number "
          "of times; default balanced and fast")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--settings", arguments->settings_file,
                      "JSON file of name -> BASE[,option=value]...");
  command->add_option("--prompts", arguments->prompts,
                      "one prompt a line, or a JSON list of captions; default the model's held-out "
                      "captions");
  command->add_option("--first", arguments->first, "the first prompt of the list to draw, from 0")
      ->check(kNotNegative)
      ->capture_default_str();
  command->add_option("--count", arguments->count, "how many prompts")
      ->check(kPositive)
      ->capture_default_str();
  command->add_option("--seeds", arguments->seeds, "pictures a prompt")
      ->check(kPositive)
      ->capture_default_str();
  command->add_option("--clock", arguments->clock, "what seconds count: wall, or cpu time")
      ->check(CLI::IsMember({"wall", "cpu"}))
      ->capture_default_str();
  command->add_option("-o,--out", arguments->out, "folder of the results; finished runs stay")
      ->capture_default_str();
  command->add_flag("--strict", arguments->strict, "fail instead of running otherwise than asked");
  add_model_options(*command, arguments->model);
  command->add_flag("--json", arguments->json, "one JSON object on stdout");
  command->add_flag("-v,--verbose", arguments->verbose, "say what each run gave");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
