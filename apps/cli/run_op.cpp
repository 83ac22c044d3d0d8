// run_op.cpp -- `flashomni run-op`: one operator on tensors from a file.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend_options.h"
#include "commands.h"
#include "op_call.h"
#include "progress.h"

namespace flashomni::cli {
namespace {

struct Operator {
  const char* name;
  const char* primary;  // the tensor whose dtype is the operator's unless set
  void (*run)(OpCall&);
  std::vector<std::string> settings;
};

const std::vector<Operator>& operators() {
  static const std::vector<Operator> table = {
      {"attention",
       "q",
       run_attention,
       {"dtype", "block_q", "block_kv", "scale", "text_tokens", "text_position",
        "steps_since_update"}},
      {"gemm-q", "x", run_gemm_q, {"dtype", "heads", "block_q", "text_offset"}},
      {"gemm-o-update",
       "o",
       run_gemm_o_update,
       {"dtype", "heads", "block_q", "text_offset", "order", "steps_since_update"}},
      {"gemm-o-dispatch",
       "o",
       run_gemm_o_dispatch,
       {"dtype", "heads", "block_q", "text_offset", "steps_since_update"}},
      {"policy",
       "q",
       run_policy,
       {"dtype", "block_q", "block_kv", "text_tokens", "text_position", "tau_q", "tau_kv", "scope",
        "sim_threshold", "keep_text_kv"}},
  };
  return table;
}

struct Options {
  std::string op, input, output;
  std::vector<std::string> set;
  BackendChoice backend;
  bool json = false, verbose = false;
};

const Operator& find_operator(const std::string& name) {
  std::string known;
  for (const Operator& op : operators()) {
    if (name == op.name) return op;
    known += (known.empty() ? "" : ", ") + std::string(op.name);
  }
  throw UsageError("run-op: there is no operator '" + name + "'; there are " + known);
}

Settings parse_settings(const Operator& op, const std::vector<std::string>& pairs) {
  Settings settings;
  for (const std::string& pair : pairs) {
    const std::size_t equals = pair.find('=');
    if (equals == std::string::npos) {
      throw UsageError("run-op: --set takes name=value, not '" + pair + "'");
    }
    const std::string name = pair.substr(0, equals);
    if (std::ranges::find(op.settings, name) == op.settings.end()) {
      std::string known;
      for (const std::string& setting : op.settings) {
        known += (known.empty() ? "" : ", ") + setting;
      }
      throw UsageError(std::string("run-op ") + op.name + ": there is no setting '" + name +
                       "'; there are " + known);
    }
    settings[name] = pair.substr(equals + 1);
  }
  return settings;
}

void run(const Options& options) {
  const Operator& op = find_operator(options.op);
  const Settings settings = parse_settings(op, options.set);
  const auto backend = make_backend(options.backend);
  OpCall call(op.name, options.input, settings, op.primary, *backend);
  const auto start = std::chrono::steady_clock::now();
  op.run(call);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (options.verbose) {
    say(std::string(op.name) + " in " + std::string(dtype_name(call.dtype())) + " on " +
        std::string(backend->name()) + " (" + backend->description() +
        "): " + std::to_string(seconds.count()) + " s with its plans and copies");
  }
  call.write(options.output);

  nlohmann::ordered_json result = {{"op", op.name},
                                   {"backend", backend->name()},
                                   {"dtype", dtype_name(call.dtype())},
                                   {"out", options.output},
                                   {"tensors", nlohmann::ordered_json::object()}};
  for (const auto& [name, value] : call.saved()) {
    result["tensors"][name] = {{"dtype", dtype_name(value.dtype())},
                               {"shape", value.view().layout.to_string()}};
  }
  if (options.json) {
    std::cout << result.dump(2) << "\n";
    return;
  }
  std::cout << "wrote " << options.output << ":";
  for (const auto& [name, tensor] : result["tensors"].items()) {
    std::cout << " " << name << " " << tensor["dtype"].get<std::string>() << " "
              << tensor["shape"].get<std::string>();
  }
  std::cout << "\n";
}

}  // namespace

void add_run_op(CLI::App& app, Command& selected) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run-op", "one operator on tensors from a file");
  command
      ->add_option("op", options->op, "attention, gemm-q, gemm-o-update, gemm-o-dispatch, policy")
      ->required();
  command->add_option("--input", options->input, "safetensors file with the operands")->required();
  command->add_option("--output", options->output, "safetensors file to write")->required();
  command->add_option("--set", options->set, "settings: name=value,...")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->footer(
      "Rows that attention does not compute keep `out` of the input, or are extrapolated from\n"
      "`reuse` (+ k `reuse_1` + k^2/2 `reuse_2`) of the same shape, k = --set steps_since_update.");
  add_backend_options(*command, options->backend);
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->add_flag("-v,--verbose", options->verbose, "say where it ran and how long");
  command->callback([&selected, options] { selected = [options] { run(*options); }; });
}

}  // namespace flashomni::cli
