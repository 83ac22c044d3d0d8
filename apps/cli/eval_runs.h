// eval_runs.h -- the runs of an evaluation: which, in what order, and what is measured of them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "captions.h"
#include "eval_report.h"
#include "eval_store.h"
#include "generation.h"
#include "settings.h"

namespace flashomni::cli {

// One prompt and seed. The noise is fixed by the place in the whole list, so that other slices of
// the list share their pictures: prompt i draws with the seeds i, i + 1000, i + 2000, ...
struct EvalJob {
  Caption caption;
  std::uint64_t seed = 0;
};
std::vector<EvalJob> list_jobs(const std::vector<Caption>& captions, int first, int seeds);

// What every run in one folder shares: model, size, steps, guidance, dtype, backend, machine.
nlohmann::ordered_json facts_of(const Session& session);

// Draws what `store` lacks, dense first for each job, with a progress bar over all of it.
// `verbose` says on stderr what each run gave.
void run_missing(Session& session, EvalStore& store, const std::vector<Setting>& settings,
                 const std::vector<EvalJob>& jobs, bool verbose);

// The finished runs of every setting, each with its dense one.
std::vector<EvaluatedSetting> pair_up(const EvalStore& store, const std::vector<Setting>& settings,
                                      const std::vector<EvalJob>& jobs);

}  // namespace flashomni::cli
