// tuner.h -- the search of `flashomni tune`: a grid of schedules, a proxy, full runs of the best.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval_runs.h"
#include "generation.h"
#include "proxy.h"

namespace flashomni::cli {

struct TuneArguments {
  ModelArguments model;
  std::optional<double> target_psnr, target_speedup;
  std::string budget = "10m", prompts, out = "tuned.json", folder = "out/tune", clock = "wall";
  int count = 4;
  bool json = false, verbose = false;
};

// "90", "90s", "10m" or "1h" in seconds. Throws UsageError for anything else.
double parse_budget(const std::string& text);

struct Measured {
  double psnr_db = 0, speedup = 0;
};

// One point of the grid.
struct Candidate {
  std::string family;      // its way of leaving work out
  std::size_t policy = 0;  // the same, in RunTrace::policies
  int warmup = 0, interval = 0;
  Setting setting;
  Proxy proxy;
  nlohmann::ordered_json full;  // the summary of its full runs, or null

  Measured confirmed() const {
    return {full["psnr_db"]["mean"].get<double>(), full["speedup"]["mean"].get<double>()};
  }
};

class Tuner {
 public:
  Tuner(const TuneArguments& arguments, Session& session);

  // nullptr: no candidate met the target within the budget.
  const Candidate* search();

  // Sentences about steps in the grid beside `chosen` that cost much, and about its worst picture.
  std::vector<std::string> cliffs(const Candidate& chosen) const;
  // What the proxy looked at, and how well it ordered the settings that were run in full.
  nlohmann::ordered_json proxy_facts() const;
  const std::vector<Candidate>& grid() const { return grid_; }
  bool out_of_time() const { return Clock_::now() > end_; }

 private:
  using Clock_ = std::chrono::steady_clock;

  bool meets(const Measured& measured) const;
  double objective(const Measured& measured) const;
  void judge_all();
  Measured estimate(const Candidate& candidate) const;
  Candidate* most_promising(const Candidate* best);
  void confirm(Candidate& candidate);

  const TuneArguments& arguments_;
  Session& session_;
  const Clock_::time_point end_;
  std::vector<Candidate> grid_;
  std::vector<EvalJob> jobs_;
  nlohmann::ordered_json facts_;  // of the run that was watched
};

}  // namespace flashomni::cli
