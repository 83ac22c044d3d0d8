// backend_options.h -- --backend, --threads and --json, which most subcommands share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "flashomni/backend.h"

namespace CLI {
class App;
}

namespace flashomni::cli {

struct BackendChoice {
  std::string name = "auto";
  int threads = 0;
};

void add_backend_options(CLI::App& command, BackendChoice& choice);
// Throws UsageError for a name that does not exist.
std::unique_ptr<Backend> make_backend(const BackendChoice& choice);

// "f32", "bf16" or "f16"; throws UsageError naming `option` otherwise.
DType parse_dtype(const std::string& text, const char* option);

}  // namespace flashomni::cli
