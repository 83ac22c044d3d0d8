// tuner.cpp -- the candidates are ordered by a proxy, block recall and forecast error in one dense
// run. What it is worth in dB and time is learnt from each full paired run, and the most promising
// candidate left is run in full next, until none left can beat the best found.
// SPDX-License-Identifier: Apache-2.0
#include "tuner.h"

#include <algorithm>
#include <cmath>

#include "commands.h"
#include "eval_marks.h"
#include "eval_report.h"
#include "progress.h"
#include "proxy_run.h"
#include "statistics.h"
#include "text.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

constexpr double kCliffDb = 4;  // a step in the grid that costs more than this is told
// Until a full run tells: PSNR over the loss, fitted to flux-mini at 128 x 128 pixels.
constexpr double kDbAtOne = 9, kDbPerDecade = 26;

// Ways of leaving work out, each with every schedule of the grid.
struct Family {
  const char *name, *setting;
};
constexpr Family kFamilies[] = {
    {"layers", "flashomni,tau-q=0.8,tau-kv=0.1,block=64,layer-cache=0.5"},
    {"layers+keys", "spargeattn+taylorseer,block=64"},
    {"blocks", "flashomni,tau-q=0.5,tau-kv=0.05,block=64,layer-cache=0"},
};

// Schedules from careful to bold.
std::vector<Candidate> make_grid(int steps) {
  std::vector<Candidate> grid;
  for (std::size_t policy = 0; policy < std::size(kFamilies); ++policy) {
    const Family& family = kFamilies[policy];
    for (const int warmup : {8, 6, 5, 4, 3}) {
      for (const int interval : {2, 3, 4, 5}) {
        if (warmup + interval >= steps) continue;
        const std::string text = print("%s W%d N%d=%s,warmup=%d,interval=%d", family.name, warmup,
                                       interval, family.setting, warmup, interval);
        grid.push_back({family.name, policy, warmup, interval, parse_setting(text), {}, nullptr});
      }
    }
  }
  return grid;
}

}  // namespace

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

Tuner::Tuner(const TuneArguments& arguments, Session& session)
    : arguments_(arguments),
      session_(session),
      end_(Clock_::now() + std::chrono::duration_cast<Clock_::duration>(
                               std::chrono::duration<double>(parse_budget(arguments.budget)))),
      grid_(make_grid(session.request.steps)) {
  const std::filesystem::path list = arguments.prompts.empty()
                                         ? session.model / "heldout" / "captions.json"
                                         : std::filesystem::path(arguments.prompts);
  std::vector<Caption> captions = read_captions(list, "--prompts");
  if (captions.size() > static_cast<std::size_t>(arguments.count)) {
    captions.resize(arguments.count);
  }
  jobs_ = list_jobs(captions, 0, 1);
}

const Candidate* Tuner::search() {
  judge_all();
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

bool Tuner::meets(const Measured& measured) const {
  return arguments_.target_psnr ? measured.psnr_db >= *arguments_.target_psnr
                                : measured.speedup >= *arguments_.target_speedup;
}

double Tuner::objective(const Measured& measured) const {
  return arguments_.target_psnr ? measured.speedup : measured.psnr_db;
}

// By one dense run of the first prompt. Half the budget at most.
void Tuner::judge_all() {
  if (grid_.empty()) return;
  std::vector<Sparsity> policies;
  for (const Family& family : kFamilies) {
    policies.push_back(parse_setting(family.setting).sparsity);
  }
  int first_update = session_.request.steps;
  for (const Candidate& candidate : grid_) {
    first_update = std::min(first_update, candidate.warmup - 1);
  }
  const Clock_::time_point start = Clock_::now();
  session_.request.prompt = jobs_.front().caption.text;
  session_.request.seed = jobs_.front().seed;
  const RunTrace run = watch_dense_run(session_, policies, first_update,
                                       std::chrono::duration<double>(end_ - start).count() / 2);
  for (Candidate& candidate : grid_) {
    candidate.proxy = judge(run, candidate.policy, candidate.setting.sparsity.engine);
    if (!arguments_.verbose) continue;
    say(print("  %s: loss %.4f (recall %.3f, forecast error %.3f) at %.3f of the work",
              candidate.setting.name.c_str(), candidate.proxy.loss, candidate.proxy.recall,
              candidate.proxy.forecast_error, candidate.proxy.macs_ratio));
  }
  const double seconds = std::chrono::duration<double>(Clock_::now() - start).count();
  facts_ = {{"prompt", session_.request.prompt},
            {"seed", session_.request.seed},
            {"layers", run.layers_seen},
            {"of_layers", run.layers_of_model},
            {"row_stride", run.stride},
            {"candidates", grid_.size()},
            {"seconds", seconds}};
  say(print("Judged %zu settings in %.0f s by one dense run of \"%.100s\"", grid_.size(), seconds,
            session_.request.prompt.c_str()));
  if (run.layers_seen < run.layers_of_model) {
    say(print("Only %d of %d layers were looked at: all would take too much memory or time",
              run.layers_seen, run.layers_of_model));
  }
}

// The proxy, corrected by what full runs gave: of other candidates of its family, else of any.
Measured Tuner::estimate(const Candidate& candidate) const {
  const auto raw = [](const Proxy& proxy) {
    const double db = kDbAtOne - kDbPerDecade * std::log10(std::max(proxy.loss, 1e-5));
    return Measured{db, 1 / proxy.macs_ratio};
  };
  const Measured expected = raw(candidate.proxy);
  const auto is_kin = [&](const Candidate& other) { return other.family == candidate.family; };
  const bool any_kin = std::ranges::any_of(
      grid_, [&](const Candidate& other) { return !other.full.is_null() && is_kin(other); });
  double db = 0, factor = 0;
  int count = 0;
  for (const Candidate& other : grid_) {
    if (other.full.is_null() || (any_kin && !is_kin(other))) continue;
    const Measured other_raw = raw(other.proxy);
    db += other.confirmed().psnr_db - other_raw.psnr_db;
    factor += other.confirmed().speedup / other_raw.speedup;
    ++count;
  }
  if (count == 0) return expected;
  return {expected.psnr_db + db / count, expected.speedup * factor / count};
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
    if (!candidate.full.is_null()) continue;
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
  const std::string name = print("full-%dx%d", session_.request.width, session_.request.height);
  EvalStore store(std::filesystem::path(arguments_.folder) / name, facts_of(session_));
  run_missing(session_, store, {candidate.setting}, jobs_, arguments_.verbose);
  std::vector<EvaluatedSetting> evaluated = pair_up(store, {candidate.setting}, jobs_);
  mark_captions(store, session_.model, jobs_, evaluated);
  const Clock clock = arguments_.clock == "cpu" ? Clock::kCpu : Clock::kWall;
  candidate.full = summarise({}, evaluated, clock, {})["settings"][0];
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
    if (other.family != chosen.family || !(longer || earlier)) continue;
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

ordered_json Tuner::proxy_facts() const {
  std::vector<double> losses, errors;
  for (const Candidate& candidate : grid_) {
    if (candidate.full.is_null()) continue;
    losses.push_back(candidate.proxy.loss);
    errors.push_back(-candidate.confirmed().psnr_db);
  }
  ordered_json facts = facts_;
  facts["rank_correlation"] =
      losses.size() < 3 ? ordered_json() : ordered_json(rank_correlation(losses, errors));
  return facts;
}

}  // namespace flashomni::cli
