// progress.h -- how far a long job is, on stderr: a bar on a terminal, lines elsewhere.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

namespace flashomni::cli {

class Progress {
 public:
  // Bars appear once a job has lasted, or is expected to last, this long; lines always.
  static constexpr double kPatienceSeconds = 2;

  Progress(std::string label, int total);
  ~Progress();  // clears the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of the total are finished; `note` says what the last one was.
  void show(int done, const std::string& note);

 private:
  double seconds() const;

  std::string label_;
  int total_;
  std::chrono::steady_clock::time_point start_;
  bool terminal_, shown_ = false;
};

// One line of what is going on, on stderr.
void say(const std::string& line);

}  // namespace flashomni::cli
