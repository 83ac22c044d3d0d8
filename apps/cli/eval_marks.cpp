#include "eval_marks.h"

#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>

#include "caption_judge.h"
#include "machine.h"
#include "picture_file.h"
#include "progress.h"

namespace flashomni::cli {
namespace {

using Notes = std::map<std::string, nlohmann::json>;

// Judges pictures that have not been judged before.
class Marker {
 public:
  Marker(EvalStore& store, const std::filesystem::path& folder)
      : store_(store), judge_(folder), notes_(store.read_notes("captions")) {}

  bool is_right(const EvalRun& run, const Caption& caption) {
    const auto known = notes_.find(run.picture);
    if (known != notes_.end()) return known->second.get<bool>();
    const bool right = judge_.judge(read_png(store_.picture_path(run)), caption).right;
    store_.add_note("captions", run.picture, right);
    notes_[run.picture] = right;
    return right;
  }

 private:
  EvalStore& store_;
  CaptionJudge judge_;
  Notes notes_;
};

std::string quoted(const std::filesystem::path& path) {
  std::string text = "'";
  for (const char character : path.string()) {
    text += character == '\'' ? std::string("'\\''") : std::string(1, character);
  }
  return text + "'";
}

// Runs a shell command; its exit status, and its output in `output`.
int run_shell(const std::string& command, std::string& output) {
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return -1;
  std::array<char, 256> part;
  while (std::fgets(part.data(), part.size(), pipe)) output += part.data();
  return pclose(pipe);
}

std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}  // namespace

std::vector<std::string> mark_captions(EvalStore& store, const std::filesystem::path& model,
                                       const std::vector<EvalJob>& jobs,
                                       std::vector<EvaluatedSetting>& settings) {
  int unknown = 0;
  for (const EvalJob& job : jobs) unknown += job.caption.objects.empty();
  if (unknown == static_cast<int>(jobs.size())) {
    return {"Captions were not judged: nothing is known of what these prompts must show."};
  }
  if (!std::filesystem::exists(model / "heldout" / "sprites.png")) {
    return {"Captions were not judged: the model has no heldout/sprites.png."};
  }
  Marker marker(store, model / "heldout");
  Progress progress("Judging", static_cast<int>(jobs.size()));
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    for (EvaluatedSetting& evaluated : settings) {
      if (jobs[i].caption.objects.empty()) continue;
      EvalPair& pair = evaluated.pairs[i];
      pair.dense_right = marker.is_right(*pair.dense, jobs[i].caption);
      pair.sparse_right = marker.is_right(*pair.sparse, jobs[i].caption);
    }
    progress.show(static_cast<int>(i) + 1, "captions");
  }
  if (unknown == 0) return {};
  return {std::to_string(unknown) + " captions were not judged: nothing is known of them."};
}

std::vector<std::string> mark_lpips(EvalStore& store, std::vector<EvaluatedSetting>& settings) {
  Notes notes = store.read_notes("lpips");
  const std::filesystem::path list = store.folder() / "lpips-pairs.txt";
  int missing = 0;
  {
    std::ofstream pairs(list);
    for (const EvaluatedSetting& evaluated : settings) {
      for (const EvalPair& pair : evaluated.pairs) {
        if (notes.contains(pair.sparse->picture)) continue;
        ++missing;
        pairs << store.picture_path(*pair.dense).string() << "\t"
              << store.picture_path(*pair.sparse).string() << "\n";
      }
    }
  }
  std::vector<std::string> why;
  std::string output;
  const std::filesystem::path script = find_shipped("python/eval/lpips_pairs.py");
  if (missing > 0 && script.empty()) {
    why = {"LPIPS was not measured: python/eval/lpips_pairs.py is not here."};
  } else if (missing > 0 && run_shell("python3 " + quoted(script) + " " + quoted(list) + " " +
                                          quoted(store.folder() / "lpips.jsonl"),
                                      output) != 0) {
    why = {"LPIPS was not measured: " + last_line(output) + "."};
  }
  std::filesystem::remove(list);
  notes = store.read_notes("lpips");
  for (EvaluatedSetting& evaluated : settings) {
    for (EvalPair& pair : evaluated.pairs) {
      const auto note = notes.find(pair.sparse->picture);
      if (note != notes.end()) pair.lpips = note->second.get<double>();
    }
  }
  return why;
}

}  // namespace flashomni::cli
