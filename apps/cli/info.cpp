// info.cpp -- `flashomni info`: a block to paste into an issue.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "commands.h"
#include "flashomni/backend.h"
#include "flashomni/policy.h"
#include "machine.h"
#include "progress.h"
#include "version.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : text;
}

ordered_json describe_backends() {
  ordered_json backends = ordered_json::array();
  for (const BackendInfo& backend : list_backends()) {
    backends.push_back(
        {{"name", backend.name}, {"available", backend.available}, {"detail", backend.detail}});
  }
  return backends;
}

ordered_json describe() {
  ordered_json policies = ordered_json::array();
  for (const PolicyInfo& policy : list_policies()) policies.push_back(policy.name);
  return {{"version", kVersion},
          {"commit", kCommit},
          {"system", system_name()},
          {"cpu", cpu_model()},
          {"cores", available_cores()},
          {"cpu_features", cpu_features()},
          {"gpus", gpu_models()},
          {"backends", describe_backends()},
          {"cpu_kernels", cpu_kernel_sets()},
          {"policies", policies},
          {"compiler", __VERSION__},
          {"libraries",
           {{"highway", FLASHOMNI_HIGHWAY_VERSION},
            {"nlohmann_json", std::to_string(NLOHMANN_JSON_VERSION_MAJOR) + "." +
                                  std::to_string(NLOHMANN_JSON_VERSION_MINOR) + "." +
                                  std::to_string(NLOHMANN_JSON_VERSION_PATCH)},
            {"cli11", CLI11_VERSION}}}};
}

void print(const ordered_json& facts) {
  const auto text = [&](const char* key) { return facts[key].get<std::string>(); };
  const auto list = [&](const char* key) {
    return joined(facts[key].get<std::vector<std::string>>());
  };
  std::cout << "flashomni " << text("version") << " (" << text("commit") << ")\n"
            << "system     " << text("system") << ", compiler " << text("compiler") << "\n"
            << "cpu        " << text("cpu") << ", " << facts["cores"] << " cores\n"
            << "features   " << list("cpu_features") << "\n"
            << "gpus       " << list("gpus") << "\n";
  for (const auto& backend : facts["backends"]) {
    std::cout << "backend    " << backend["name"].get<std::string>() << ": "
              << (backend["available"].get<bool>() ? "" : "not available, ")
              << backend["detail"].get<std::string>() << "\n";
  }
  std::cout << "kernels    cpu: " << list("cpu_kernels") << "\n"
            << "policies   " << list("policies") << "\n"
            << "libraries ";
  for (const auto& [name, version] : facts["libraries"].items()) {
    std::cout << " " << name << " " << version.get<std::string>();
  }
  std::cout << "\n";
}

// On stderr, beside the facts.
void print_policies() {
  for (const PolicyInfo& policy : list_policies()) {
    std::string line = policy.name + ": " + policy.summary;
    for (const std::string_view option : policy.options) line += " --" + std::string(option);
    say(line);
  }
}

}  // namespace

void add_info(CLI::App& app, Command& run) {
  CLI::App* command = app.add_subcommand("info", "what this program is and can do here");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "one JSON object instead of text");
  const auto verbose = std::make_shared<bool>(false);
  command->add_flag("-v,--verbose", *verbose, "what each policy does, and its options");
  command->callback([&run, json, verbose] {
    run = [json, verbose] {
      if (*verbose) print_policies();
      const ordered_json facts = describe();
      if (*json) {
        std::cout << facts.dump(2) << "\n";
      } else {
        print(facts);
      }
    };
  });
}

}  // namespace flashomni::cli
