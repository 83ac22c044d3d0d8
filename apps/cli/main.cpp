// main.cpp -- flashomni, the command-line tool: picks a subcommand, turns failures into a sentence.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>
#include <string>

#include "commands.h"
#include "version.h"

namespace {

constexpr int kFailure = 1, kUsage = 2;

int complain(const std::string& sentence, int exit_code) {
  std::cerr << "flashomni: " << sentence << "\n";
  return exit_code;
}

// CLI11 would only say that a subcommand is required.
void check_subcommand(const CLI::App& app, const std::string& word) {
  if (word.empty() || word[0] == '-') return;
  std::string known;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == word) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  throw flashomni::cli::UsageError("there is no subcommand '" + word + "'; there are " + known);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace flashomni::cli;
  CLI::App app{
      "FlashOmni: text to image with block-sparse, cached attention.\n"
      "Progress goes to stderr, results to stdout."};
  app.set_version_flag("--version", std::string("flashomni ") + kVersion + " (" + kCommit + ")");
  app.require_subcommand(1);
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Command run;
  for (const auto add : {add_generate, add_compare, add_eval, add_judge, add_predict, add_tune,
                         add_inspect, add_bench, add_run_op, add_selftest, add_info})
    add(app, run);
  try {
    if (argc > 1) check_subcommand(app, argv[1]);
    app.parse(argc, argv);
    run();
    std::cout.flush();
    if (!std::cout) return complain("the result could not be written to stdout", kFailure);
    return 0;
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return complain(std::string(error.what()) + " (--help lists what there is)", kUsage);
  } catch (const UsageError& error) {
    return complain(error.what(), kUsage);
  } catch (const std::exception& error) {
    return complain(error.what(), kFailure);
  }
}
