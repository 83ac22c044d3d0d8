// number_checks.h -- ranges of option values, said in words.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

namespace flashomni::cli {

// CLI11's own checks print the largest double as the upper end.
inline const CLI::Validator kPositive(
    [](std::string& text) {
      return std::strtod(text.c_str(), nullptr) > 0 ? "" : text + " is not greater than 0";
    },
    "POSITIVE");

inline const CLI::Validator kNotNegative(
    [](std::string& text) {
      return std::strtod(text.c_str(), nullptr) < 0 ? text + " is less than 0" : "";
    },
    "NONNEGATIVE");

}  // namespace flashomni::cli
