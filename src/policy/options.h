// options.h -- option values of policies, from text.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "flashomni/policy.h"

namespace flashomni {

// Reads the options given to one policy. Absent options give their default; a value that does not
// parse or is out of range throws kInvalidArgument with the values that are allowed.
class OptionReader {
 public:
  OptionReader(std::string_view policy, const PolicyOptions& options)
      : policy_(policy), options_(options) {}

  const std::string* find(std::string_view option) const;
  // nullopt if absent.
  std::optional<double> number(std::string_view option, double minimum, double maximum) const;
  std::optional<int> integer(std::string_view option, int minimum, int maximum) const;
  bool flag(std::string_view option, bool absent) const;                 // 0, 1, false, true
  PolicyScope scope(std::string_view option, PolicyScope absent) const;  // head, layer
  // "8x8" or "4x8x8": rows and columns, with or without frames before them; each at least 1.
  TokenGrid size(std::string_view option, const TokenGrid& absent) const;
  [[noreturn]] void reject(std::string_view option, std::string_view allowed) const;

 private:
  std::string_view policy_;
  const PolicyOptions& options_;
};

}  // namespace flashomni
