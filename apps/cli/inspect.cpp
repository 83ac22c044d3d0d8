// inspect.cpp -- `flashomni inspect`: a recorded run as a page to look at.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include "commands.h"
#include "progress.h"
#include "report.h"

namespace flashomni::cli {
namespace {

struct InspectArguments {
  std::string run, against, out = "report.html";
  bool verbose = false;
};

void write_whole(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".partial";
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  file.close();
  std::error_code failure;
  if (file) std::filesystem::rename(temporary, path, failure);
  if (file && !failure) return;
  std::filesystem::remove(temporary, failure);
  throw std::runtime_error("inspect: cannot write " + path);
}

void run(const InspectArguments& arguments) {
  const RunRecord first = read_run(arguments.run);
  std::unique_ptr<RunRecord> second;
  if (!arguments.against.empty()) {
    second = std::make_unique<RunRecord>(read_run(arguments.against));
  }
  if (arguments.verbose) {
    say("The page: the picture with its cached blocks, work by step and layer, maps by head, the "
        "block map of one head, densities and times" +
        std::string(second ? "; and where the two runs differ." : "."));
  }
  const std::string page = make_report(first, second.get());
  write_whole(arguments.out, page);
  std::cout << "Wrote " << arguments.out << " (" << (page.size() + 1023) / 1024
            << " KiB); any browser opens it, offline.\n";
}

}  // namespace

void add_inspect(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand(
      "inspect", "a recorded run as a page: which layers, heads and blocks were left out");
  command->add_option("run", arguments->run, "RUN.safetensors of --record")->required();
  command->add_option("--against", arguments->against, "another run, to see what differs");
  command->add_option("-o,--out", arguments->out, "HTML file to write")->capture_default_str();
  command->add_flag("-v,--verbose", arguments->verbose, "say what the page shows");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
