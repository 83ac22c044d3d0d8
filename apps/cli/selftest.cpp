// selftest.cpp -- `flashomni selftest`: every operator on every backend and kernel set, checked.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench_jobs.h"
#include "commands.h"
#include "flashomni/error.h"
#include "progress.h"

namespace flashomni::cli {
namespace {

struct Operation {
  const char* name;
  BenchJob (*make)(Backend&, const BenchShape&, const MaskRequest&);
};
// `layer` runs the projections and attention through the engine, update and dispatch.
constexpr Operation kOperations[] = {{"attention", attention_job},
                                     {"gemm-q", gemm_q_job},
                                     {"gemm-o", gemm_o_job},
                                     {"policy", policy_job},
                                     {"layer", step_job}};
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

struct Subject {
  std::string backend, kernels;
};

struct Check {
  Subject subject;
  DType dtype = DType::kF32;
  const Operation* operation = nullptr;
  int cases = 0;
  double worst = 0;
  std::string unsupported;  // why it could not run
  bool passed() const { return worst <= allowed_error(dtype); }
};

std::vector<Subject> subjects() {
  std::vector<Subject> found;
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available) continue;
    if (backend.name != "cpu") {
      found.push_back({std::string(backend.name), ""});
      continue;
    }
    for (const std::string& kernels : cpu_kernel_sets()) found.push_back({"cpu", kernels});
  }
  return found;
}

std::unique_ptr<Backend> make_backend(const Subject& subject) {
  BackendOptions options;
  if (!subject.kernels.empty()) options.cpu_kernels = subject.kernels;
  return flashomni::make_backend(subject.backend, options);
}

// Shapes that kernels find hard: ragged tails, text of odd length, few and many blocks.
BenchShape random_shape(Random& random, DType dtype, bool any_head_dim) {
  BenchShape shape;
  shape.dtype = dtype;
  shape.num_heads = 1 + random.below(3);
  shape.head_dim = any_head_dim ? 8 * (1 + random.below(16)) : 64 * (1 + random.below(2));
  shape.block = 32 << random.below(3);
  shape.text_tokens = random.below(2) * random.below(90);
  shape.seq_len = shape.text_tokens + 1 + random.below(400);
  shape.interval = 2 + random.below(3);
  return shape;
}

MaskRequest random_mask(Random& random) {
  constexpr MaskKind kKinds[] = {MaskKind::kSkip, MaskKind::kCache, MaskKind::kMix};
  constexpr MaskPattern kPatterns[] = {MaskPattern::kRandom, MaskPattern::kClustered,
                                       MaskPattern::kSkewed};
  return {kKinds[random.below(3)], kPatterns[random.below(3)], 0.1 * random.below(10),
          random.bits()};
}

Check run_check(const Subject& subject, DType dtype, const Operation& operation, double seconds) {
  Check check;
  check.subject = subject;
  check.dtype = dtype;
  check.operation = &operation;
  Random random(static_cast<std::uint64_t>(dtype) + 1);
  const auto start = std::chrono::steady_clock::now();
  try {
    const auto backend = make_backend(subject);
    do {
      const BenchShape shape = random_shape(random, dtype, subject.backend != "cuda");
      const BenchJob job = operation.make(*backend, shape, random_mask(random));
      job.sparse();
      check.worst = std::max(check.worst, job.error());
      ++check.cases;
    } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
             seconds);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    check.unsupported = error.what();
  }
  return check;
}

void print(const std::vector<Check>& checks) {
  std::printf("%-10s %-12s %-5s %-10s %6s %10s %10s\n", "backend", "kernels", "dtype", "operator",
              "cases", "worst", "allowed");
  for (const Check& check : checks) {
    std::printf("%-10s %-12s %-5s %-10s %6d %10.1e %10.1e  %s\n", check.subject.backend.c_str(),
                check.subject.kernels.c_str(), dtype_name(check.dtype).data(),
                check.operation->name, check.cases, check.worst, allowed_error(check.dtype),
                !check.unsupported.empty() ? check.unsupported.c_str()
                : check.passed()           ? "ok"
                                           : "WRONG");
  }
  std::fflush(stdout);
}

nlohmann::ordered_json to_json(const Check& check) {
  return {{"backend", check.subject.backend},
          {"kernels", check.subject.kernels},
          {"dtype", dtype_name(check.dtype)},
          {"op", check.operation->name},
          {"cases", check.cases},
          {"worst_rel_err", check.worst},
          {"allowed_rel_err", allowed_error(check.dtype)},
          {"unsupported", check.unsupported},
          {"ok", check.passed()}};
}

std::vector<Check> run_checks(double seconds) {
  const std::vector<Subject> found = subjects();
  const auto total = found.size() * std::size(kDTypes) * std::size(kOperations);
  std::vector<Check> checks;
  Progress progress("selftest", static_cast<int>(total));
  for (const Subject& subject : found) {
    for (const DType dtype : kDTypes) {
      for (const Operation& operation : kOperations) {
        checks.push_back(
            run_check(subject, dtype, operation, seconds / static_cast<double>(total)));
        progress.show(static_cast<int>(checks.size()), subject.backend + " " + subject.kernels);
      }
    }
  }
  return checks;
}

void run(double seconds, bool json, bool verbose) {
  if (verbose) {
    say("Random sparse cases of every operator, for a share of the time each, against the "
        "reference on the same symbols; worst = norm of the difference over the norm.");
  }
  const std::vector<Check> checks = run_checks(seconds);
  const auto wrong =
      std::ranges::count_if(checks, [](const Check& check) { return !check.passed(); });
  if (json) {
    nlohmann::ordered_json record = {{"ok", wrong == 0}, {"checks", nlohmann::json::array()}};
    for (const Check& check : checks) record["checks"].push_back(to_json(check));
    std::cout << record.dump(2) << "\n";
  } else {
    print(checks);
  }
  if (wrong > 0) {
    throw Error(ErrorCode::kUnsupported, "selftest: " + std::to_string(wrong) + " of " +
                                             std::to_string(checks.size()) +
                                             " checks gave wrong results");
  }
}

}  // namespace

void add_selftest(CLI::App& app, Command& selected) {
  CLI::App* command =
      app.add_subcommand("selftest", "every operator on every backend of this machine, checked");
  const auto seconds = std::make_shared<double>(20);
  const auto json = std::make_shared<bool>(false);
  command->add_option("--seconds", *seconds, "how long to go on")->capture_default_str();
  command->add_flag("--json", *json, "one JSON object on stdout");
  const auto verbose = std::make_shared<bool>(false);
  command->add_flag("-v,--verbose", *verbose, "say what is checked and how");
  command->callback(
      [&selected, seconds, json, verbose] { selected = [=] { run(*seconds, *json, *verbose); }; });
}

}  // namespace flashomni::cli
