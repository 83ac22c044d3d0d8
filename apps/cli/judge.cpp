// judge.cpp -- `flashomni judge`: does a picture show what its caption names?
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>

#include "caption_judge.h"
#include "commands.h"
#include "generation.h"
#include "number_checks.h"
#include "picture_file.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

struct JudgeArguments {
  std::vector<std::string> pictures;
  std::string prompt, model;
  int first = 0;
  bool json = false, verbose = false;
};

const Caption& find_caption(const std::vector<Caption>& captions, const std::string& text) {
  const auto found = std::ranges::find(captions, text, &Caption::text);
  if (found == captions.end()) {
    throw UsageError("--prompt: '" + text + "' is none of the model's held-out captions");
  }
  return *found;
}

ordered_json to_json(const std::string& picture, const Caption& caption,
                     const CaptionJudgement& judgement) {
  ordered_json objects = ordered_json::array();
  for (std::size_t i = 0; i < judgement.objects.size(); ++i) {
    const ObjectJudgement& object = judgement.objects[i];
    objects.push_back({{"sprite", caption.objects[i].sprite},
                       {"score", object.score},
                       {"better_distractors", object.better},
                       {"found", object.found}});
  }
  return {{"picture", picture},
          {"caption", caption.text},
          {"right", judgement.right},
          {"objects", objects}};
}

void print(const ordered_json& result, bool verbose) {
  std::cout << result["picture"].get<std::string>() << ": "
            << (result["right"].get<bool>() ? "right" : "wrong") << ", \""
            << result["caption"].get<std::string>() << "\"\n";
  for (const ordered_json& object : result["objects"]) {
    if (!verbose && object["found"].get<bool>()) continue;
    char line[120];
    std::snprintf(line, sizeof line, "  %s %s: correlation %.2f, %d of %d distractors fit better\n",
                  object["sprite"].get<std::string>().c_str(),
                  object["found"].get<bool>() ? "found" : "not found",
                  object["score"].get<double>(), object["better_distractors"].get<int>(),
                  CaptionJudge::kDistractors);
    std::cout << line;
  }
}

void run(const JudgeArguments& arguments) {
  const std::filesystem::path folder = find_model(arguments.model) / "heldout";
  const CaptionJudge judge(folder);
  const std::vector<Caption> captions = read_captions(folder / "captions.json", "--model");
  ordered_json results = ordered_json::array();
  for (std::size_t i = 0; i < arguments.pictures.size(); ++i) {
    const std::size_t index = arguments.first + i;
    if (arguments.prompt.empty() && index >= captions.size()) {
      throw UsageError("there are only " + std::to_string(captions.size()) + " captions");
    }
    const Caption& caption =
        arguments.prompt.empty() ? captions[index] : find_caption(captions, arguments.prompt);
    const std::string& path = arguments.pictures[i];
    results.push_back(to_json(path, caption, judge.judge(read_png(path), caption)));
    if (!arguments.json) print(results.back(), arguments.verbose);
  }
  const auto right = std::ranges::count_if(
      results, [](const ordered_json& result) { return result["right"].get<bool>(); });
  if (arguments.json) {
    std::cout << ordered_json{{"right", right}, {"of", results.size()}, {"pictures", results}}.dump(
                     2)
              << "\n";
  } else {
    std::cout << right << " of " << results.size() << " right.\n";
  }
}

}  // namespace

void add_judge(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<JudgeArguments>();
  CLI::App* command =
      app.add_subcommand("judge", "do pictures show the objects that their captions name?");
  command->add_option("pictures", arguments->pictures, "PNG files")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_option("-p,--prompt", arguments->prompt,
                      "the held-out caption of all of them; default: the first picture is of the "
                      "caption --first, the second of the next, and so on");
  command->add_option("--first", arguments->first, "number of the first picture's caption")
      ->check(kNotNegative)
      ->capture_default_str();
  command->add_option("-m,--model", arguments->model, "folder with heldout/captions.json");
  command->add_flag("--json", arguments->json, "one JSON object on stdout");
  command->add_flag("-v,--verbose", arguments->verbose, "say how well each object was found");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
