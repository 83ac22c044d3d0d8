#include "eval_report.h"

#include <algorithm>
#include <set>

#include "picture_file.h"
#include "scatter_plot.h"
#include "sheet.h"
#include "statistics.h"
#include "text.h"

namespace flashomni::cli {
namespace {

using nlohmann::ordered_json;

constexpr int kWorstNamed = 3;

double seconds_of(const EvalRun& run, Clock clock) {
  return clock == Clock::kWall ? run.seconds : run.cpu_seconds;
}

template <typename F>
Estimate mean_of(const std::vector<EvalPair>& pairs, F&& value) {
  std::vector<double> values;
  for (const EvalPair& pair : pairs) values.push_back(value(pair));
  return mean_interval(values);
}

std::vector<EvalPair> worst_first(std::vector<EvalPair> pairs) {
  std::ranges::stable_sort(pairs, {}, [](const EvalPair& pair) { return pair.sparse->psnr_db; });
  return pairs;
}

// How many captions the dense and the sparse pictures show, or null if none was judged.
ordered_json captions_of(const std::vector<EvalPair>& pairs) {
  int of = 0, dense = 0, sparse = 0, lost = 0;
  for (const EvalPair& pair : pairs) {
    if (!pair.dense_right || !pair.sparse_right) continue;
    ++of;
    dense += *pair.dense_right;
    sparse += *pair.sparse_right;
    lost += *pair.dense_right && !*pair.sparse_right;
  }
  if (of == 0) return nullptr;
  return {{"of", of},
          {"dense_right", dense},
          {"sparse_right", sparse},
          {"right_only_dense", lost},
          {"right_only_sparse", sparse - dense + lost},
          {"dense_share", to_json(share_interval(dense, of))},
          {"sparse_share", to_json(share_interval(sparse, of))}};
}

ordered_json lpips_of(const std::vector<EvalPair>& pairs) {
  std::vector<double> values;
  for (const EvalPair& pair : pairs) {
    if (pair.lpips) values.push_back(*pair.lpips);
  }
  return values.empty() ? ordered_json() : to_json(mean_interval(values));
}

ordered_json worst_of(const std::vector<EvalPair>& pairs) {
  ordered_json worst = ordered_json::array();
  for (const EvalPair& pair : worst_first(pairs)) {
    if (worst.size() == kWorstNamed) break;
    worst.push_back({{"prompt", pair.sparse->prompt},
                     {"seed", pair.sparse->seed},
                     {"psnr_db", pair.sparse->psnr_db},
                     {"ssim", pair.sparse->ssim}});
  }
  return worst;
}

ordered_json summarise_setting(const EvaluatedSetting& evaluated, Clock clock) {
  const auto& [setting, pairs] = evaluated;
  const auto mean = [&](auto&& value) { return to_json(mean_of(pairs, value)); };
  return {
      {"name", setting.name},
      {"policy", setting.sparsity.policy},
      {"options", identity(setting.sparsity)},
      {"pairs", pairs.size()},
      {"psnr_db", mean([](const EvalPair& pair) { return pair.sparse->psnr_db; })},
      {"ssim", mean([](const EvalPair& pair) { return pair.sparse->ssim; })},
      {"lpips", lpips_of(pairs)},
      {"captions", captions_of(pairs)},
      {"macs_ratio",
       mean([](const EvalPair& pair) { return pair.sparse->macs_done / pair.dense->macs_done; })},
      {"attention_sparsity",
       mean([](const EvalPair& pair) { return pair.sparse->attention_sparsity; })},
      {"seconds", mean([&](const EvalPair& pair) { return seconds_of(*pair.sparse, clock); })},
      {"dense_seconds", mean([&](const EvalPair& pair) { return seconds_of(*pair.dense, clock); })},
      {"speedup", mean([&](const EvalPair& pair) {
         return seconds_of(*pair.dense, clock) / seconds_of(*pair.sparse, clock);
       })},
      {"worst", worst_of(pairs)}};
}

std::string interval(const ordered_json& estimate, int digits) {
  if (estimate.is_null()) return "-";
  const std::string mean = print("%.*f", digits, estimate["mean"].get<double>());
  if (estimate["low"].is_null()) return mean;
  const double margin = estimate["high"].get<double>() - estimate["mean"].get<double>();
  return mean + print(" +- %.*f", digits, margin);
}

std::string table_row(const ordered_json& row) {
  const ordered_json& captions = row["captions"];
  std::string right = "-";
  if (!captions.is_null()) {
    right = print("%d, dense %d, of %d", captions["sparse_right"].get<int>(),
                  captions["dense_right"].get<int>(), captions["of"].get<int>());
  }
  return "| " + row["name"].get<std::string>() + " | " + interval(row["macs_ratio"], 3) + " | " +
         interval(row["psnr_db"], 1) + " | " + print("%.1f", row["psnr_db"]["min"].get<double>()) +
         " | " + interval(row["ssim"], 3) + " | " + interval(row["lpips"], 3) + " | " + right +
         " | " + interval(row["seconds"], 2) + " | " + interval(row["speedup"], 2) + " |\n";
}

const char* clock_name(Clock clock) { return clock == Clock::kWall ? "wall" : "cpu"; }

// Every version of the program that drew one of the pictures.
ordered_json commits_of(const std::vector<EvaluatedSetting>& settings) {
  std::set<std::string> commits;
  for (const EvaluatedSetting& evaluated : settings) {
    for (const EvalPair& pair : evaluated.pairs) {
      commits.insert({pair.dense->commit, pair.sparse->commit});
    }
  }
  return commits;
}

}  // namespace

ordered_json summarise(const ordered_json& facts, const std::vector<EvaluatedSetting>& settings,
                       Clock clock, const std::vector<std::string>& notes) {
  ordered_json summary = facts;
  summary["commits"] = commits_of(settings);
  summary["clock"] = clock_name(clock);
  summary["interval"] = "95 %: Student's t for means, Wilson's score for shares";
  summary["settings"] = ordered_json::array();
  for (const EvaluatedSetting& evaluated : settings) {
    summary["settings"].push_back(summarise_setting(evaluated, clock));
  }
  summary["notes"] = notes;
  return summary;
}

std::string to_markdown(const ordered_json& summary) {
  std::string text = print(
      "# %s, %d x %d pixels, %d steps, guidance %g\n\n%s, %s, %s kernels. Each sparse picture is "
      "compared with the dense one of its prompt and seed.\nMeans with 95 %% intervals (Student's "
      "t); seconds of the denoising by %s.\n\n",
      summary["model"].get<std::string>().c_str(), summary["width"].get<int>(),
      summary["height"].get<int>(), summary["steps"].get<int>(), summary["cfg"].get<double>(),
      summary["machine"].get<std::string>().c_str(), summary["dtype"].get<std::string>().c_str(),
      summary["backend"].get<std::string>().c_str(),
      summary["clock"] == "cpu" ? "the processor's time of all threads" : "the clock on the wall");
  text +=
      "| setting | MACs / dense | PSNR dB | worst | SSIM | LPIPS | captions right | seconds | "
      "speed-up |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
  for (const ordered_json& row : summary["settings"]) text += table_row(row);
  text += "\n";
  for (const ordered_json& row : summary["settings"]) {
    text += "- `" + row["name"].get<std::string>() + "` is " + row["options"].get<std::string>() +
            print("; %d pairs; worst:", row["pairs"].get<int>());
    for (const ordered_json& worst : row["worst"]) {
      text += print(" %.1f dB \"%s\" (seed %llu);", worst["psnr_db"].get<double>(),
                    worst["prompt"].get<std::string>().c_str(),
                    worst["seed"].get<unsigned long long>());
    }
    text.back() = '.';
    text += "\n";
  }
  for (const ordered_json& note : summary["notes"]) text += "- " + note.get<std::string>() + "\n";
  return text;
}

std::string to_plot(const ordered_json& summary, PlotAxis axis) {
  std::vector<PlotPoint> points;
  for (const ordered_json& row : summary["settings"]) {
    const ordered_json& psnr = row["psnr_db"];
    const double y = psnr["mean"];
    const double x = row[axis == PlotAxis::kWork ? "macs_ratio" : "seconds"]["mean"];
    points.push_back({row["name"], row["policy"], x, y,
                      psnr["low"].is_null() ? y : psnr["low"].get<double>(),
                      psnr["high"].is_null() ? y : psnr["high"].get<double>()});
  }
  const std::string size =
      print("%d x %d pixels", summary["width"].get<int>(), summary["height"].get<int>());
  if (axis == PlotAxis::kWork) {
    return scatter_plot({"Likeness to the dense picture over work, " + size,
                         "multiply-adds, share of the dense run", "PSNR, dB"},
                        points);
  }
  return scatter_plot({"Likeness to the dense picture over time, " + size,
                       summary["clock"] == "cpu" ? "seconds of processor time for the denoising"
                                                 : "seconds for the denoising",
                       "PSNR, dB"},
                      points);
}

Picture worst_cases(const EvalStore& store, const std::vector<EvaluatedSetting>& settings,
                    int count) {
  std::vector<Picture> rows;
  for (const EvaluatedSetting& evaluated : settings) {
    const std::vector<EvalPair> pairs = worst_first(evaluated.pairs);
    std::vector<Picture> pictures;
    std::vector<std::string> captions;
    for (int i = 0; i < std::min<int>(count, static_cast<int>(pairs.size())); ++i) {
      pictures.push_back(read_png(store.picture_path(*pairs[i].dense)));
      pictures.push_back(read_png(store.picture_path(*pairs[i].sparse)));
      captions.push_back(i == 0 ? evaluated.setting.name : "dense");
      captions.push_back(print("%.1f dB", pairs[i].sparse->psnr_db));
    }
    std::vector<Panel> panels;
    for (std::size_t i = 0; i < pictures.size(); ++i) panels.push_back({&pictures[i], captions[i]});
    if (!panels.empty()) rows.push_back(side_by_side(panels));
  }
  return stack(rows);
}

}  // namespace flashomni::cli
