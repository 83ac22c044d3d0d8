// eval_marks.h -- what is judged of an evaluation's pictures beside PSNR and SSIM.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "eval_report.h"
#include "eval_runs.h"

namespace flashomni::cli {

// Fills in whether each picture shows its caption's objects, where both are known; judged once a
// picture, kept in captions.jsonl. Returns what could not be judged and why, or nothing.
std::vector<std::string> mark_captions(EvalStore& store, const std::filesystem::path& model,
                                       const std::vector<EvalJob>& jobs,
                                       std::vector<EvaluatedSetting>& settings);

// Fills in LPIPS where python3 has torch and lpips; measured once a pair, kept in lpips.jsonl.
// Returns why it was not measured, or nothing.
std::vector<std::string> mark_lpips(EvalStore& store, std::vector<EvaluatedSetting>& settings);

}  // namespace flashomni::cli
