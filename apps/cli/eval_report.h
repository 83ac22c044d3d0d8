// eval_report.h -- what an evaluation's pairs say: JSON, Markdown, plots, the worst cases.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval_store.h"
#include "settings.h"

namespace flashomni::cli {

// A dense and a sparse run of one prompt and seed, and what was judged of their pictures.
struct EvalPair {
  const EvalRun *dense = nullptr, *sparse = nullptr;
  std::optional<bool> dense_right, sparse_right;  // the caption; absent: not judged
  std::optional<double> lpips;
};

struct EvaluatedSetting {
  Setting setting;
  std::vector<EvalPair> pairs;
};

enum class Clock { kWall, kCpu };

// `facts` first, then one object a setting under "settings", then "notes".
nlohmann::ordered_json summarise(const nlohmann::ordered_json& facts,
                                 const std::vector<EvaluatedSetting>& settings, Clock clock,
                                 const std::vector<std::string>& notes);
// A page for people, of a summary.
std::string to_markdown(const nlohmann::ordered_json& summary);
// PSNR over the share of the dense work, or over seconds, of a summary.
enum class PlotAxis { kWork, kSeconds };
std::string to_plot(const nlohmann::ordered_json& summary, PlotAxis axis);
// One row a setting: its `count` pairs of the lowest PSNR, dense beside sparse.
Picture worst_cases(const EvalStore& store, const std::vector<EvaluatedSetting>& settings,
                    int count);

}  // namespace flashomni::cli
