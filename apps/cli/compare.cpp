// compare.cpp -- `flashomni compare`: dense and sparse with one seed, and how far they are apart.
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "commands.h"
#include "explain.h"
#include "flashomni/image_metrics.h"
#include "flashomni/png.h"
#include "generation.h"
#include "progress.h"
#include "sheet.h"

namespace flashomni::cli {
namespace {

constexpr int kDifferenceGain = 4;  // differences of a few levels are invisible otherwise

struct Distance {
  double psnr_db, ssim;
  int max_abs_diff;
};

Distance distance(const Picture& a, const Picture& b) {
  return {psnr_db(a, b), ssim(a, b), max_abs_diff(a, b)};
}

Picture make_sheet(const GenerateResult& dense, const GenerateResult& sparse,
                   const Distance& apart) {
  char first[40], second[40], third[40];
  std::snprintf(first, sizeof first, "dense %.2f s", dense.seconds_denoise);
  std::snprintf(second, sizeof second, "sparse %.2f s, %.2fx", sparse.seconds_denoise,
                dense.seconds_denoise / sparse.seconds_denoise);
  std::snprintf(third, sizeof third, "diff x%d, %.1f dB", kDifferenceGain, apart.psnr_db);
  const Picture between = difference(dense.picture, sparse.picture, kDifferenceGain);
  return side_by_side({{&dense.picture, first}, {&sparse.picture, second}, {&between, third}});
}

void print_summary(const Session& session, const GenerateResult& dense,
                   const GenerateResult& sparse, const Distance& apart) {
  char line[240];
  std::snprintf(line, sizeof line,
                "%d x %d pixels, seed %llu, %d steps: dense %.2f s, sparse %.2f s, %.2f times as "
                "fast.\nThe pictures are %.1f dB apart (PSNR; SSIM %.3f, largest difference %d of "
                "255).\n",
                session.request.width, session.request.height,
                static_cast<unsigned long long>(session.request.seed), session.request.steps,
                dense.seconds_denoise, sparse.seconds_denoise,
                dense.seconds_denoise / sparse.seconds_denoise, apart.psnr_db, apart.ssim,
                apart.max_abs_diff);
  std::cout << line;
}

void run(const GenerationArguments& arguments) {
  const std::unique_ptr<RunRecord> replayed = read_replay(arguments.recording);
  const Sparsity sparsity = resolve_sparsity(arguments.sparsity, replayed.get());
  Session session = open_session(arguments, replayed.get());
  Recording recording(arguments.recording, replayed.get());
  warm_up(session);
  const GenerateResult dense = draw(session, dense_sparsity(), "Dense ");
  const GenerateResult sparse = draw(session, sparsity, "Sparse", recording.record());
  const Distance apart = distance(dense.picture, sparse.picture);
  write_png(arguments.out, make_sheet(dense, sparse, apart),
            {{"parameters", parameters_text(session, sparsity)}});
  recording.finish(sparsity, &dense);

  const std::vector<std::string> why = explain(dense, sparse, sparsity);
  if (arguments.json) {
    nlohmann::ordered_json json = {
        {"dense", to_json(session, dense_sparsity(), dense, arguments.out)},
        {"sparse", to_json(session, sparsity, sparse, arguments.out)},
        {"psnr_db", apart.psnr_db},
        {"ssim", apart.ssim},
        {"max_abs_diff", apart.max_abs_diff},
        {"speedup_denoise", dense.seconds_denoise / sparse.seconds_denoise},
        {"macs_ratio", dense.macs_done > 0 ? sparse.macs_done / dense.macs_done : 1},
        {"why", why}};
    recording.add_to(json);
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::cout << "Wrote " << arguments.out << ": dense, sparse and their difference, for \""
            << session.request.prompt << "\"\n";
  print_summary(session, dense, sparse, apart);
  print_sparsity(sparsity, sparse);
  for (const std::string& sentence : why) std::cout << sentence << "\n";
  recording.print();
  if (!arguments.verbose) return;
  std::cout << "\nDense:\n";
  print_op_times(dense);
  std::cout << "\nSparse:\n";
  print_op_times(sparse);
}

}  // namespace

void add_compare(CLI::App& app, Command& selected) {
  const auto arguments = std::make_shared<GenerationArguments>();
  arguments->out = "compare.png";
  CLI::App* command =
      app.add_subcommand("compare", "dense and sparse with one seed, side by side, and why");
  add_generation_options(*command, *arguments);
  command->callback([&selected, arguments] { selected = [arguments] { run(*arguments); }; });
}

}  // namespace flashomni::cli
