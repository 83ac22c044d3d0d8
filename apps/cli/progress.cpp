#include "progress.h"

#include <unistd.h>  // isatty

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <utility>

namespace flashomni::cli {
namespace {

constexpr int kBarWidth = 24;

std::string seconds_text(double seconds) {
  char text[32];
  if (seconds >= 60) {
    std::snprintf(text, sizeof text, "%d:%02d min", static_cast<int>(seconds) / 60,
                  static_cast<int>(seconds) % 60);
  } else {
    std::snprintf(text, sizeof text, seconds < 1 ? "%.2f s" : "%.1f s", seconds);
  }
  return text;
}

}  // namespace

Progress::Progress(std::string label, int total)
    : label_(std::move(label)),
      total_(total),
      start_(std::chrono::steady_clock::now()),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (shown_) std::cerr << "\r\033[K" << std::flush;
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::show(int done, const std::string& note) {
  const double each = seconds() / std::max(done, 1);
  const std::string facts = std::to_string(done) + "/" + std::to_string(total_) + "  " +
                            seconds_text(each) + " each  " + seconds_text(each * (total_ - done)) +
                            " left  " + note;
  if (!terminal_) {
    std::cerr << label_ << " " << facts << "\n";
    return;
  }
  if (!shown_ && each * total_ < kPatienceSeconds) return;
  const int filled = kBarWidth * done / std::max(total_, 1);
  std::cerr << "\r\033[K" << label_ << " [" << std::string(filled, '#')
            << std::string(kBarWidth - filled, '.') << "] " << facts << std::flush;
  shown_ = true;
}

void say(const std::string& line) { std::cerr << line << "\n"; }

}  // namespace flashomni::cli
