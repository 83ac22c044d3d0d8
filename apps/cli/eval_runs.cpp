#include "eval_runs.h"

#include <cstdio>
#include <ctime>
#include <set>

#include "flashomni/image_metrics.h"
#include "machine.h"
#include "picture_file.h"
#include "progress.h"
#include "version.h"

namespace flashomni::cli {
namespace {

constexpr std::uint64_t kSeedStride = 1000;

// Of all threads of this program.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A picture and the line about it, without the distance to the dense one.
EvalRun draw_run(Session& session, const Sparsity& sparsity, const EvalJob& job, Picture& picture) {
  session.request.prompt = job.caption.text;
  session.request.seed = job.seed;
  const double before = cpu_seconds();
  GenerateResult result = draw_silently(session, sparsity);
  const double cpu = cpu_seconds() - before;
  picture = std::move(result.picture);
  return {.setting = identity(sparsity),
          .prompt = job.caption.text,
          .seed = job.seed,
          .seconds = result.seconds_denoise,
          .cpu_seconds = cpu,
          .macs_done = result.macs_done,
          .macs_total = result.macs_total,
          .attention_sparsity = result.sparsity.attention_sparsity,
          .layers_cached = result.sparsity.layers_cached,
          .commit = kCommit,
          .picture = ""};
}

struct MissingRun {
  const EvalJob* job;
  const Setting* setting;  // nullptr: dense
};

std::vector<MissingRun> list_missing(const EvalStore& store, const std::vector<Setting>& settings,
                                     const std::vector<EvalJob>& jobs) {
  std::vector<MissingRun> missing;
  for (const EvalJob& job : jobs) {
    std::set<std::string> wanted;  // settings of two names may be one and the same
    const auto want = [&](const std::string& what, const Setting* setting) {
      const bool there = store.find(what, job.caption.text, job.seed) != nullptr;
      if (!there && wanted.insert(what).second) missing.push_back({&job, setting});
    };
    want("dense", nullptr);
    for (const Setting& setting : settings) want(identity(setting.sparsity), &setting);
  }
  return missing;
}

// Draws one run and stores it; one sentence about it.
std::string run_one(Session& session, EvalStore& store, const MissingRun& missing) {
  const EvalJob& job = *missing.job;
  Picture picture;
  if (!missing.setting) {
    const EvalRun run = draw_run(session, dense_sparsity(), job, picture);
    store.add(run, picture);
    return "dense";
  }
  EvalRun run = draw_run(session, missing.setting->sparsity, job, picture);
  const EvalRun* dense = store.find("dense", job.caption.text, job.seed);
  const Picture reference = read_png(store.picture_path(*dense));
  run.psnr_db = psnr_db(reference, picture);
  run.ssim = ssim(reference, picture);
  run.max_abs_diff = max_abs_diff(reference, picture);
  char note[160];
  std::snprintf(note, sizeof note, "%.60s: %.1f dB at %.2f of the work",
                missing.setting->name.c_str(), run.psnr_db, run.macs_done / dense->macs_done);
  store.add(run, picture);
  return note;
}

}  // namespace

std::vector<EvalJob> list_jobs(const std::vector<Caption>& captions, int first, int seeds) {
  std::vector<EvalJob> jobs;
  for (std::size_t i = 0; i < captions.size(); ++i) {
    for (int k = 0; k < seeds; ++k) jobs.push_back({captions[i], first + i + kSeedStride * k});
  }
  return jobs;
}

nlohmann::ordered_json facts_of(const Session& session) {
  const GenerateRequest& request = session.request;
  return {{"model", session.model.filename().string()},
          {"width", request.width},
          {"height", request.height},
          {"steps", request.steps},
          {"cfg", request.cfg},
          {"guidance", request.guidance},
          {"dtype", dtype_name(session.dtype)},
          {"backend", session.pipeline.backend().name()},
          {"device", session.pipeline.backend().description()},
          {"machine", cpu_model()}};
}

void run_missing(Session& session, EvalStore& store, const std::vector<Setting>& settings,
                 const std::vector<EvalJob>& jobs, bool verbose) {
  const std::vector<MissingRun> missing = list_missing(store, settings, jobs);
  if (missing.empty()) return;
  session.request.prompt = jobs.front().caption.text;
  warm_up(session);
  Progress progress("Evaluating", static_cast<int>(missing.size()));
  for (std::size_t i = 0; i < missing.size(); ++i) {
    const std::string note = run_one(session, store, missing[i]);
    progress.show(static_cast<int>(i) + 1, note);
    if (verbose) {
      say("  \"" + missing[i].job->caption.text + "\", seed " +
          std::to_string(missing[i].job->seed) + ", " + note);
    }
  }
}

std::vector<EvaluatedSetting> pair_up(const EvalStore& store, const std::vector<Setting>& settings,
                                      const std::vector<EvalJob>& jobs) {
  std::vector<EvaluatedSetting> evaluated;
  for (const Setting& setting : settings) {
    evaluated.push_back({setting, {}});
    for (const EvalJob& job : jobs) {
      const auto find = [&](const std::string& what) {
        return store.find(what, job.caption.text, job.seed);
      };
      evaluated.back().pairs.push_back(
          {find("dense"), find(identity(setting.sparsity)), {}, {}, {}});
    }
  }
  return evaluated;
}

}  // namespace flashomni::cli
