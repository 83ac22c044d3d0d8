// commands.h -- the subcommands. Each add_* declares its options on `app` and sets `run` when the
// user picks it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <stdexcept>

namespace CLI {
class App;
}

namespace flashomni::cli {

// Arguments that make no sense together or have no such value: exit code 2. Failures are Errors of
// the library: exit code 1.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Command = std::function<void()>;

void add_generate(CLI::App& app, Command& run);
void add_compare(CLI::App& app, Command& run);
void add_eval(CLI::App& app, Command& run);
void add_inspect(CLI::App& app, Command& run);
void add_judge(CLI::App& app, Command& run);
void add_tune(CLI::App& app, Command& run);
void add_predict(CLI::App& app, Command& run);
void add_bench(CLI::App& app, Command& run);
void add_run_op(CLI::App& app, Command& run);
void add_selftest(CLI::App& app, Command& run);
void add_info(CLI::App& app, Command& run);

}  // namespace flashomni::cli
