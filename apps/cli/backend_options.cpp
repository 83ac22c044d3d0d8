#include "backend_options.h"

#include <CLI/CLI.hpp>

#include "commands.h"
#include "number_checks.h"

namespace flashomni::cli {

void add_backend_options(CLI::App& command, BackendChoice& choice) {
  command.add_option("--backend", choice.name, "auto, reference, cpu or cuda")
      ->capture_default_str();
  command.add_option("--threads", choice.threads, "CPU threads; 0: one per core")
      ->check(kNotNegative)
      ->capture_default_str();
}

std::unique_ptr<Backend> make_backend(const BackendChoice& choice) {
  std::string known = "auto";
  bool exists = choice.name == "auto";
  for (const BackendInfo& backend : list_backends()) {
    known += ", " + std::string(backend.name);
    exists = exists || backend.name == choice.name;
  }
  if (!exists) {
    throw UsageError("--backend: there is no backend '" + choice.name + "'; there are " + known);
  }
  BackendOptions options;
  options.num_threads = choice.threads;
  return flashomni::make_backend(choice.name, options);
}

DType parse_dtype(const std::string& text, const char* option) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (text == dtype_name(dtype)) return dtype;
  }
  throw UsageError(std::string(option) + ": '" + text + "' is not one of f32, bf16, f16");
}

}  // namespace flashomni::cli
