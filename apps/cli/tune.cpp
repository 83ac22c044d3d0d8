// tune.cpp -- `flashomni tune`: finds a preset for a model and a size.
//
// Every schedule of a grid is first tried as a cheap proxy: half the width and height, blocks of
// half the tokens, two prompts. The proxy orders the candidates; how far it is off is learnt from
// each full paired run, and the most promising candidate left is run in full next, until none left
// can beat the best found.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>

#include "commands.h"
#include "eval_marks.h"
#include "eval_report.h"
#include "eval_runs.h"
#include "flashomni/error.h"
#include "generation.h"
#include "number_checks.h"
#include "progress.h"
#include "version.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

constexpr int kProxyPrompts = 2;
constexpr int kUnit = 16;       // pixels; a multiple of the patch of every model here
constexpr double kCliffDb = 4;  // a step in the grid that costs more than this is told

struct TuneArguments {
  ModelArguments model;
  std::optional<double> target_psnr, target_speedup;
  std::string budget = "10m", prompts, out = "tuned.json", folder = "out/tune", clock = "wall";
  int count = 4;
  bool json = false, verbose = false;
};

[[gnu::format(printf, 1, 2)]] std::string print(const char* pattern, ...) {
  char text[400];
  std::va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

// "90", "90s", "10m" or "1h" in seconds.
double parse_budget(const std::string& text) {
  std::size_t end = 0;
  double seconds = 0;
  try {
    seconds = std::stod(text, &end);
  } catch (const std::logic_error&) {
    end = 0;
  }
  const std::string unit = text.substr(end);
  const double factor = unit.empty() || unit == "s" ? 1 : unit == "m" ? 60 : unit == "h" ? 3600 : 0;
  if (end == 0 || factor == 0 || !(seconds > 0)) {
    throw UsageError("--budget: '" + text + "' is not a time as 90s, 10m or 1h");
  }
  return seconds * factor;
}

struct Measured {
  double psnr_db = 0, speedup = 0;
};

// Ways of leaving work out, each with every schedule of the grid.
struct Family {
  const char *name, *setting;
};
constexpr Family kFamilies[] = {
    {"layers", "flashomni,tau-q=0.8,tau-kv=0.1,block=64,layer-cache=0.5"},
    {"layers+keys", "spargeattn+taylorseer,block=64"},
    {"blocks", "flashomni,tau-q=0.5,tau-kv=0.05,block=64,layer-cache=0"},
};

struct Candidate {
  std::string family;
  int warmup = 0, interval = 0;
  Setting setting;
  std::optional<Measured> proxy;  // its speed-up is that of the multiply-adds
  ordered_json full;              // the summary of its full runs, or null

  Measured confirmed() const {
    return {full["psnr_db"]["mean"].get<double>(), full["speedup"]["mean"].get<double>()};
  }
};

// Schedules from careful to bold.
std::vector<Candidate> make_grid(int steps) {
  std::vector<Candidate> grid;
  for (const Family& family : kFamilies) {
    for (const int warmup : {8, 6, 5, 4, 3}) {
      for (const int interval : {2, 3, 4, 5}) {
        if (warmup + interval >= steps) continue;
        const std::string text = print("%s W%d N%d=%s,warmup=%d,interval=%d", family.name, warmup,
                                       interval, family.setting, warmup, interval);
        grid.push_back({family.name, warmup, interval, parse_setting(text), {}, nullptr});
      }
    }
  }
  return grid;
}

class Tuner {
 public:
  Tuner(const TuneArguments& arguments, Session& session)
      : arguments_(arguments),
        session_(session),
        whole_(session.request),
        end_(Clock_::now() + std::chrono::duration_cast<Clock_::duration>(
                                 std::chrono::duration<double>(parse_budget(arguments.budget)))),
        grid_(make_grid(session.request.steps)) {
    const std::filesystem::path list = arguments.prompts.empty()
                                           ? session.model / "heldout" / "captions.json"
                                           : std::filesystem::path(arguments.prompts);
    captions_ = read_captions(list, "--prompts");
    if (captions_.size() > static_cast<std::size_t>(arguments.count)) {
      captions_.resize(arguments.count);
    }
  }

  // nullptr: no candidate met the target within the budget.
  const Candidate* search() {
    try_proxies();
    const Candidate* best = nullptr;
    while (Candidate* next = most_promising(best)) {
      if (Clock_::now() > end_ && best) break;
      confirm(*next);
      if (meets(next->confirmed()) &&
          (!best || objective(next->confirmed()) > objective(best->confirmed()))) {
        best = next;
      }
      if (Clock_::now() > end_) break;
    }
    return best;
  }

  // Sentences about steps in the grid beside `chosen` that cost much, and about its worst picture.
  std::vector<std::string> cliffs(const Candidate& chosen) const;
  const std::vector<Candidate>& grid() const { return grid_; }
  bool out_of_time() const { return Clock_::now() > end_; }

 private:
  using Clock_ = std::chrono::steady_clock;

  bool meets(const Measured& measured) const {
    return arguments_.target_psnr ? measured.psnr_db >= *arguments_.target_psnr
                                  : measured.speedup >= *arguments_.target_speedup;
  }
  double objective(const Measured& measured) const {
    return arguments_.target_psnr ? measured.speedup : measured.psnr_db;
  }

  ordered_json evaluate(const Setting& setting, const std::string& name, int prompts) {
    EvalStore store(std::filesystem::path(arguments_.folder) / name, facts_of(session_));
    std::vector<Caption> captions = captions_;
    if (captions.size() > static_cast<std::size_t>(prompts)) captions.resize(prompts);
    const std::vector<EvalJob> jobs = list_jobs(captions, 0, 1);
    run_missing(session_, store, {setting}, jobs, arguments_.verbose);
    std::vector<EvaluatedSetting> evaluated = pair_up(store, {setting}, jobs);
    const bool is_proxy = session_.request.width != whole_.width;
    if (!is_proxy) mark_captions(store, session_.model, jobs, evaluated);
    const Clock clock = arguments_.clock == "cpu" ? Clock::kCpu : Clock::kWall;
    return summarise({}, evaluated, clock, {})["settings"][0];
  }

  void try_proxies();
  Measured estimate(const Candidate& candidate) const;
  Candidate* most_promising(const Candidate* best);
  void confirm(Candidate& candidate);

  const TuneArguments& arguments_;
  Session& session_;
  GenerateRequest whole_;
  Clock_::time_point end_;
  std::vector<Candidate> grid_;
  std::vector<Caption> captions_;
};

// Half the budget at most.
void Tuner::try_proxies() {
  const auto half = [](int pixels) { return std::max(kUnit, pixels / 2 / kUnit * kUnit); };
  const Clock_::time_point start = Clock_::now();
  session_.request.width = half(whole_.width);
  session_.request.height = half(whole_.height);
  const std::string name = print("proxy-%dx%d", session_.request.width, session_.request.height);
  for (Candidate& candidate : grid_) {
    Setting proxy = candidate.setting;  // few blocks would seldom cache a layer whole
    proxy.sparsity.engine.block_q /= 2;
    proxy.sparsity.engine.block_kv /= 2;
    const ordered_json row = evaluate(proxy, name, kProxyPrompts);
    candidate.proxy = {row["psnr_db"]["mean"].get<double>(),
                       1 / row["macs_ratio"]["mean"].get<double>()};
    if (Clock_::now() - start > (end_ - start) / 2) break;
  }
  session_.request = whole_;
}

// The proxy, corrected by what full runs of other candidates of its family gave.
Measured Tuner::estimate(const Candidate& candidate) const {
  double db = 0, factor = 0;
  int count = 0;
  for (const Candidate& other : grid_) {
    if (other.full.is_null() || other.family != candidate.family) continue;
    db += other.confirmed().psnr_db - other.proxy->psnr_db;
    factor += other.confirmed().speedup / other.proxy->speedup;
    ++count;
  }
  if (count == 0) return *candidate.proxy;
  return {candidate.proxy->psnr_db + db / count, candidate.proxy->speedup * factor / count};
}

// Of the candidates not yet run in full, the one that should be best and meet the target; while
// none should, the one that should come closest to it. nullptr: none can beat `best`.
Candidate* Tuner::most_promising(const Candidate* best) {
  const auto shortfall = [&](const Measured& measured) {
    return arguments_.target_psnr ? *arguments_.target_psnr - measured.psnr_db
                                  : *arguments_.target_speedup - measured.speedup;
  };
  Candidate *chosen = nullptr, *closest = nullptr;
  for (Candidate& candidate : grid_) {
    if (!candidate.proxy || !candidate.full.is_null()) continue;
    const Measured expected = estimate(candidate);
    if (!closest || shortfall(expected) < shortfall(estimate(*closest))) closest = &candidate;
    if (!meets(expected)) continue;
    if (!chosen || objective(expected) > objective(estimate(*chosen))) chosen = &candidate;
  }
  if (!best) return chosen ? chosen : closest;
  if (!chosen || objective(estimate(*chosen)) <= objective(best->confirmed())) return nullptr;
  return chosen;
}

void Tuner::confirm(Candidate& candidate) {
  const std::string name = print("full-%dx%d", whole_.width, whole_.height);
  candidate.full = evaluate(candidate.setting, name, arguments_.count);
  say(print("%s: %.1f dB, %.2f times as fast, on %d prompts", candidate.setting.name.c_str(),
            candidate.confirmed().psnr_db, candidate.confirmed().speedup,
            candidate.full["pairs"].get<int>()));
}

std::vector<std::string> Tuner::cliffs(const Candidate& chosen) const {
  std::vector<std::string> sentences;
  const double here = chosen.confirmed().psnr_db;
  for (const Candidate& other : grid_) {
    const bool longer = other.warmup == chosen.warmup && other.interval == chosen.interval + 1;
    const bool earlier = other.warmup == chosen.warmup - 1 && other.interval == chosen.interval;
    if (other.family != chosen.family || !(longer || earlier) || !other.proxy) continue;
    const double there = other.full.is_null() ? estimate(other).psnr_db : other.confirmed().psnr_db;
    if (here - there < kCliffDb) continue;
    sentences.push_back(print("A cliff is near: %s %d would cost %.1f dB (%s).",
                              longer ? "interval" : "warmup",
                              longer ? other.interval : other.warmup, here - there,
                              other.full.is_null() ? "estimated" : "measured"));
  }
  const double worst = chosen.full["psnr_db"]["min"];
  if (here - worst > 1.5 * kCliffDb) {
    sentences.push_back(
        print("The worst picture is at %.1f dB, %.1f below the mean.", worst, here - worst));
  }
  return sentences;
}

std::string target_text(const TuneArguments& arguments) {
  return arguments.target_psnr ? print("PSNR of at least %g dB", *arguments.target_psnr)
                               : print("speed-up of at least %g", *arguments.target_speedup);
}

// A preset that --preset reads, with what was measured under "evidence".
ordered_json make_preset(const TuneArguments& arguments, const Session& session, const Tuner& tuner,
                         const Candidate& chosen) {
  const Sparsity& sparsity = chosen.setting.sparsity;
  ordered_json preset = {
      {"description", "Found by flashomni tune: " + target_text(arguments) + "."},
      {"sparsity-policy", sparsity.policy},
      {"warmup", sparsity.engine.warmup},
      {"interval", sparsity.engine.interval},
      {"order", sparsity.engine.order},
      {"layer-cache", sparsity.engine.layer_cache},
      {"ramp", sparsity.engine.ramp},
      {"block", sparsity.engine.block_q}};
  for (const auto& [name, value] : sparsity.policy_options) preset[name] = value;
  ordered_json evidence = facts_of(session);
  evidence["commit"] = kCommit;
  evidence["target"] = target_text(arguments);
  evidence["clock"] = arguments.clock;
  for (const char* key : {"pairs", "psnr_db", "ssim", "captions", "macs_ratio", "speedup",
                          "seconds", "dense_seconds", "worst"}) {
    evidence[key] = chosen.full[key];
  }
  evidence["cliffs"] = tuner.cliffs(chosen);
  evidence["tried_in_full"] = ordered_json::array();
  for (const Candidate& candidate : tuner.grid()) {
    if (candidate.full.is_null()) continue;
    evidence["tried_in_full"].push_back({{"options", candidate.full["options"]},
                                         {"psnr_db", candidate.confirmed().psnr_db},
                                         {"macs_ratio", candidate.full["macs_ratio"]["mean"]},
                                         {"speedup", candidate.confirmed().speedup}});
  }
  preset["evidence"] = evidence;
  return preset;
}

void print_preset(const TuneArguments& arguments, const ordered_json& preset) {
  const ordered_json& evidence = preset["evidence"];
  std::cout << print(
      "Wrote %s: W %d, N %d, %.1f dB (worst %.1f) at %.2f of the work, %.2f times "
      "as fast, on %d prompts; %zu settings run in full.\n",
      arguments.out.c_str(), preset["warmup"].get<int>(), preset["interval"].get<int>(),
      evidence["psnr_db"]["mean"].get<double>(), evidence["psnr_db"]["min"].get<double>(),
      evidence["macs_ratio"]["mean"].get<double>(), evidence["speedup"]["mean"].get<double>(),
      evidence["pairs"].get<int>(), evidence["tried_in_full"].size());
  for (const ordered_json& cliff : evidence["cliffs"]) {
    std::cout << cliff.get<std::string>() << "\n";
  }
}

void run(const TuneArguments& arguments) {
  if (arguments.target_psnr.has_value() == arguments.target_speedup.has_value()) {
    throw UsageError("tune needs either --target-psnr or --target-speedup");
  }
  parse_budget(arguments.budget);
  const std::filesystem::path folder = std::filesystem::path(arguments.out).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    throw UsageError("--out: there is no folder " + folder.string());
  }
  Session session = open_model(arguments.model);
  Tuner tuner(arguments, session);
  const Candidate* chosen = tuner.search();
  if (!chosen) {
    throw Error(ErrorCode::kUnsupported,
                "tune: nothing tried has a " + target_text(arguments) +
                    (tuner.out_of_time() ? "; the budget is used up" : "; the grid is used up"));
  }
  const ordered_json preset = make_preset(arguments, session, tuner, *chosen);
  std::ofstream file(arguments.out);
  file << preset.dump(2) << "\n";
  if (!file.flush()) throw Error(ErrorCode::kIo, arguments.out + " could not be written");
  if (arguments.json) {
    std::cout << preset.dump(2) << "\n";
  } else {
    print_preset(arguments, preset);
  }
}

}  // namespace

void add_tune(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<TuneArguments>();
  CLI::App* command =
      app.add_subcommand("tune", "finds a preset for a model and size that meets a target");
  command
      ->add_option("--target-psnr", arguments->target_psnr,
                   "dB on average to the dense pictures; the fastest preset that has it")
      ->check(kPositive);
  command
      ->add_option("--target-speedup", arguments->target_speedup,
                   "times as fast as dense; the preset nearest to dense that has it")
      ->check(kPositive);
  command->add_option("--budget", arguments->budget, "time to take: 90s, 10m, 1h")
      ->capture_default_str();
  command->add_option("--prompts", arguments->prompts,
                      "as of eval; default the model's held-out captions");
  command->add_option("--count", arguments->count, "prompts of a full run")
      ->check(kPositive)
      ->capture_default_str();
  command->add_option("--folder", arguments->folder, "for the runs; finished ones are not repeated")
      ->capture_default_str();
  command->add_option("-o,--out", arguments->out, "preset to write")->capture_default_str();
  command->add_option("--clock", arguments->clock, "what seconds count: wall, or cpu time")
      ->check(CLI::IsMember({"wall", "cpu"}))
      ->capture_default_str();
  add_model_options(*command, arguments->model);
  command->add_flag("--json", arguments->json, "the preset on stdout too");
  command->add_flag("-v,--verbose", arguments->verbose, "say what each run gave");
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
