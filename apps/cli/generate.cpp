// generate.cpp -- `flashomni generate`: a picture from a prompt.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>

#include "commands.h"
#include "flashomni/png.h"
#include "generation.h"

namespace flashomni::cli {
namespace {

void run(const GenerationArguments& arguments) {
  const std::unique_ptr<RunRecord> replayed = read_replay(arguments.recording);
  const Sparsity sparsity = resolve_sparsity(arguments.sparsity, replayed.get());
  Session session = open_session(arguments, replayed.get());
  Recording recording(arguments.recording, replayed.get());
  const GenerateResult result = draw(session, sparsity, "Drawing", recording.record());
  write_png(arguments.out, result.picture, {{"parameters", parameters_text(session, sparsity)}});
  recording.finish(sparsity);
  if (arguments.json) {
    nlohmann::ordered_json json = to_json(session, sparsity, result, arguments.out);
    recording.add_to(json);
    std::cout << json.dump(2) << "\n";
    return;
  }
  const GenerateRequest& request = session.request;
  char line[160];
  std::snprintf(line, sizeof line,
                "%d x %d pixels, seed %llu, %d steps in %.2f s (%.3f s each), %.2f s in all.\n",
                request.width, request.height, static_cast<unsigned long long>(request.seed),
                request.steps, result.seconds_denoise, result.seconds_denoise / request.steps,
                result.seconds_total);
  std::cout << "Wrote " << arguments.out << ": " << request.prompt << "\n" << line;
  print_sparsity(sparsity, result);
  recording.print();
  if (arguments.verbose) print_op_times(result);
}

}  // namespace

void add_generate(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<GenerationArguments>();
  arguments->out = "out.png";
  CLI::App* command = app.add_subcommand("generate", "a picture from a prompt");
  add_generation_options(*command, *arguments);
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
