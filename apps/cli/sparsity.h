// sparsity.h -- which policy and schedule a generation runs with: presets and single flags.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "flashomni/engine.h"
#include "flashomni/policy.h"
#include "flashomni/record.h"

namespace CLI {
class App;
}

namespace flashomni::cli {

inline constexpr const char* kDefaultPreset = "balanced";

struct SparsityArguments {
  std::optional<std::string> preset;         // absent: kDefaultPreset
  std::map<std::string, std::string> flags;  // as given, without the dashes
  bool strict = false;
};

// Adds --preset, --strict, --sparsity-policy, the options of the engine and those of every policy.
void add_sparsity_options(CLI::App& command, SparsityArguments& arguments);

// A preset with the single flags laid over it.
struct Sparsity {
  std::string preset;  // as given; "off" is dense
  std::string policy = "dense";
  PolicyOptions policy_options;
  EngineOptions engine;
  const RunRecord* replay = nullptr;  // its decisions instead of the policy's; outlives this
};

// Throws UsageError for an option in `flags` that neither the engine nor any policy has.
void check_option_names(const SparsityArguments& arguments);

// Throws UsageError for an unknown preset, option or value. With `replay`, its decisions; throws
// UsageError if `arguments` choose others.
Sparsity resolve_sparsity(const SparsityArguments& arguments, const RunRecord* replay = nullptr);
Sparsity dense_sparsity();

// Throws UsageError for a policy or a value of its options that does not exist.
void check_policy(const Sparsity& sparsity);

// `backend` outlives the engine.
std::unique_ptr<Engine> make_engine(Backend& backend, const Sparsity& sparsity);

// "warmup 4, interval 3, order 1, ... tau-q 0.8" for people.
std::string describe_options(const Sparsity& sparsity);

}  // namespace flashomni::cli
