// bench.cpp -- `flashomni bench`: times of the operators, sparse against dense, result checked
// first.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend_options.h"
#include "bench_jobs.h"
#include "commands.h"
#include "flashomni/error.h"
#include "number_checks.h"
#include "progress.h"
#include "version.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string op, dtype = "f32", kind = "skip", pattern = "random", clock = "wall";
  std::vector<int> seq_lens = {2368};
  std::vector<double> sparsities = {0, 0.5, 0.9};
  int heads = 6, head_dim = 64, block = 128, text = 0, interval = 6, min_runs = 20;
  double seconds = 1;
  std::uint64_t seed = 0;
  BackendChoice backend;
  bool json = false, verbose = false;
};

struct Operation {
  const char* name;
  BenchJob (*make)(Backend&, const BenchShape&, const MaskRequest&);
};
constexpr Operation kOperations[] = {{"attention", attention_job}, {"gemm-q", gemm_q_job},
                                     {"gemm-o", gemm_o_job},       {"linear", linear_job},
                                     {"policy", policy_job},       {"plan", plan_job},
                                     {"gemm-plan", gemm_plan_job}, {"step", step_job}};

template <typename T>
T choose(const std::string& option, const std::string& value,
         std::initializer_list<std::pair<const char*, T>> choices) {
  std::string known;
  for (const auto& [name, choice] : choices) {
    if (value == name) return choice;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw UsageError("bench: " + option + " '" + value + "' is not one of " + known);
}

const Operation& find_operation(const std::string& name) {
  std::string known;
  for (const Operation& operation : kOperations) {
    if (name == operation.name) return operation;
    known += (known.empty() ? "" : ", ") + std::string(operation.name);
  }
  throw UsageError("bench: there is no operator '" + name + "'; there are " + known);
}

// All sorted.
struct Times {
  std::vector<double> sparse, dense;        // seconds
  std::vector<double> peak, gflop_at_peak;  // GFLOP/s beside the sparse runs; times their seconds
};

double quantile(const std::vector<double>& sorted, double q) {
  return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
}

// Sparse and dense in turns, so that a change of the machine's speed meets both. It moves within
// milliseconds: on the CPU each sparse run lies between two short measurements of the peak.
Times measure(const BenchJob& job, const Options& options, bool on_cpu, DType dtype) {
  Times times;
  const auto peak = [&] {
    return on_cpu ? measure_cpu_peak("auto", dtype, options.backend.threads, 2e-3) : 0;
  };
  job.dense();
  job.sparse();
  double spent = 0;
  const auto enough = [&] {
    const auto runs = static_cast<int>(times.sparse.size());
    return spent >= options.seconds && (runs >= options.min_runs || spent >= 5 * options.seconds);
  };
  while (!enough() || times.sparse.size() < 3) {
    times.dense.push_back(job.dense());
    const double before = peak();
    times.sparse.push_back(job.sparse());
    times.peak.push_back((before + peak()) / 2);
    times.gflop_at_peak.push_back(times.peak.back() * times.sparse.back());
    spent += times.dense.back() + times.sparse.back();
  }
  for (auto* values : {&times.sparse, &times.dense, &times.peak, &times.gflop_at_peak}) {
    std::ranges::sort(*values);
  }
  return times;
}

ordered_json make_row(const Options& options, const BenchShape& shape, const MaskRequest& mask,
                      Backend& backend) {
  const BenchJob job = find_operation(options.op).make(backend, shape, mask);
  job.sparse();
  const double error = job.error();
  if (!(error <= allowed_error(shape.dtype))) {
    throw Error(ErrorCode::kUnsupported, "bench: the result of " + options.op +
                                             " is wrong: it is " + std::to_string(error) +
                                             " off, relative to its norm");
  }
  const bool on_cpu = backend.name() == "cpu";
  const Times times = measure(job, options, on_cpu, shape.dtype);
  const double median = quantile(times.sparse, 0.5), dense = quantile(times.dense, 0.5);
  const double gflop = 2e-9 * job.macs_done, speedup = dense / median;
  ordered_json row = {{"op", options.op},
                      {"seq", shape.seq_len},
                      {"heads", shape.num_heads},
                      {"head_dim", shape.head_dim},
                      {"dtype", dtype_name(shape.dtype)},
                      {"kind", options.op.starts_with("gemm") ? "cache" : options.kind},
                      {"pattern", options.pattern},
                      {"sparsity", mask.sparsity},
                      {"ms_median", 1e3 * median},
                      {"ms_p10", 1e3 * quantile(times.sparse, 0.1)},
                      {"ms_p90", 1e3 * quantile(times.sparse, 0.9)},
                      {"tflops_done", 1e-3 * gflop / median},
                      {"dense_ms", 1e3 * dense},
                      {"speedup", speedup},
                      {"ideal", nullptr},
                      {"efficiency", nullptr},
                      {"max_rel_err", error},
                      {"runs", times.sparse.size()},
                      {"peak_gflops", nullptr},
                      {"of_peak", nullptr},
                      {"of_peak_p90", nullptr}};
  if (job.ideal > 0) {
    row["ideal"] = job.ideal;
    row["efficiency"] = speedup / job.ideal;
  }
  if (on_cpu) {
    row["peak_gflops"] = quantile(times.peak, 0.5);
    row["of_peak"] = gflop / quantile(times.gflop_at_peak, 0.5);
    row["of_peak_p90"] = gflop / quantile(times.gflop_at_peak, 0.1);
  }
  return row;
}

std::string number_or_dash(const ordered_json& value, const char* format) {
  if (value.is_null()) return "-";
  char text[32];
  std::snprintf(text, sizeof text, format, value.get<double>());
  return text;
}

void print_header() {
  std::cout << "op        seq    heads x D  dtype sparsity  ms (p10-p90)           GFLOP/s  of peak"
               "  speed-up  ideal  efficiency  error\n";
}

void print_row(const ordered_json& row) {
  char line[240];
  const double gflops = 1e3 * row["tflops_done"].get<double>();
  std::snprintf(
      line, sizeof line,
      "%-9s %-6d %5d x %-3d %-5s %8.2f  %-9.3f(%.3f-%.3f)%*s %8.1f %8s %9.2f %6s %11s  "
      "%.1e\n",
      row["op"].get<std::string>().c_str(), row["seq"].get<int>(), row["heads"].get<int>(),
      row["head_dim"].get<int>(), row["dtype"].get<std::string>().c_str(),
      row["sparsity"].get<double>(), row["ms_median"].get<double>(), row["ms_p10"].get<double>(),
      row["ms_p90"].get<double>(), 0, "", gflops, number_or_dash(row["of_peak"], "%.2f").c_str(),
      row["speedup"].get<double>(), number_or_dash(row["ideal"], "%.2f").c_str(),
      number_or_dash(row["efficiency"], "%.2f").c_str(), row["max_rel_err"].get<double>());
  std::cout << line << std::flush;
}

void print_peaks(const ordered_json& rows, const std::string& dtype) {
  std::vector<double> peaks;
  for (const ordered_json& row : rows) peaks.push_back(row["peak_gflops"].get<double>());
  const auto [low, high] = std::ranges::minmax(peaks);
  std::cout << "Peak of this machine beside the rows, registers only: " << static_cast<int>(low)
            << " to " << static_cast<int>(high) << " GFLOP/s in " << dtype << ".\n";
}

void check(const Options& options) {
  find_operation(options.op);
  for (const int seq_len : options.seq_lens) {
    if (seq_len < 1 || options.text >= seq_len) {
      throw UsageError("bench: --seq " + std::to_string(seq_len) +
                       " must be positive and more than --text " + std::to_string(options.text));
    }
  }
  for (const double sparsity : options.sparsities) {
    if (!(sparsity >= 0 && sparsity < 1)) {
      throw UsageError("bench: --sparsity must be at least 0 and less than 1");
    }
  }
}

void run(const Options& options) {
  check(options);
  MaskRequest mask;
  mask.kind = choose<MaskKind>(
      "--kind", options.kind,
      {{"skip", MaskKind::kSkip}, {"cache", MaskKind::kCache}, {"mix", MaskKind::kMix}});
  mask.pattern = choose<MaskPattern>("--pattern", options.pattern,
                                     {{"random", MaskPattern::kRandom},
                                      {"clustered", MaskPattern::kClustered},
                                      {"skewed", MaskPattern::kSkewed}});
  mask.seed = options.seed;
  const DType dtype = parse_dtype(options.dtype, "bench: --dtype");
  const auto backend = make_backend(options.backend);

  ordered_json rows = ordered_json::array();
  const int total = static_cast<int>(options.seq_lens.size() * options.sparsities.size());
  if (!options.json) {
    std::cout << backend->description() << "\n";
    print_header();
  }
  {
    Progress progress("bench " + options.op, total);
    for (const int seq_len : options.seq_lens) {
      const BenchShape shape{seq_len,       options.heads,         options.head_dim,
                             options.block, options.text,          options.interval,
                             dtype,         options.clock == "cpu"};
      for (const double sparsity : options.sparsities) {
        mask.sparsity = sparsity;
        rows.push_back(make_row(options, shape, mask, *backend));
        progress.show(static_cast<int>(rows.size()), "seq " + std::to_string(seq_len));
      }
    }
  }
  if (options.verbose) {
    say("On " + backend->description() +
        ". Each row: median time over at least --runs runs; speed-up over our own dense path; "
        "of peak = the work over what registers alone would have done in the time, by the peak "
        "right "
        "before and after; ideal = total over live work; efficiency = speed-up over ideal; the "
        "error is the norm of "
        "the difference to the reference over the norm.");
  }
  if (options.json) {
    const ordered_json record = {{"device", backend->description()},
                                 {"backend", backend->name()},
                                 {"commit", kCommit},
                                 {"clock", options.clock},
                                 {"rows", rows}};
    std::cout << record.dump(2) << "\n";
    return;
  }
  for (const ordered_json& row : rows) print_row(row);
  if (backend->name() == "cpu") print_peaks(rows, options.dtype);
}

}  // namespace

void add_bench(CLI::App& app, Command& selected) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "times of an operator, sparse against dense");
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)->capture_default_str();
  };
  const auto add_list = [&](const char* name, auto& values, const char* help) {
    add(name, values, help)->delimiter(',')->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  };
  add("op", options->op, "attention, gemm-q, gemm-o, linear, policy, plan, gemm-plan or step")
      ->required();
  add_list("--seq", options->seq_lens, "tokens");
  add("--heads", options->heads, "heads")->check(kPositive);
  add("--head-dim", options->head_dim, "features of a head")->check(kPositive);
  add("--dtype", options->dtype, "f32, bf16 or f16");
  add("--kind", options->kind, "skip, cache or mix; gemm-q and gemm-o know cache only");
  add_list("--sparsity", options->sparsities, "shares of the work to leave out");
  add("--pattern", options->pattern, "random, clustered or skewed");
  add("--block", options->block, "tokens a symbol covers")->check(kPositive);
  add("--text", options->text, "leading text tokens, never left out")->check(kNotNegative);
  add("--interval", options->interval, "gemm-o and step: one update, the rest dispatches")
      ->check(kPositive);
  add("--seed", options->seed, "of the masks");
  add("--clock", options->clock, "what times count: wall, or cpu time of all threads")
      ->check(CLI::IsMember({"wall", "cpu"}));
  add("--seconds", options->seconds, "to measure each row for, at least");
  add("--runs", options->min_runs, "of each row, unless that takes five times as long");
  add_backend_options(*command, options->backend);
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->add_flag("-v,--verbose", options->verbose, "say what the figures mean");
  command->callback([&selected, options] { selected = [options] { run(*options); }; });
}

}  // namespace flashomni::cli
