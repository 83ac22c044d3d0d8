// check.h -- the macros that turn a broken precondition into an Error.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cassert>
#include <string>

#include "flashomni/error.h"

namespace flashomni {

// printf-style formatting into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

[[noreturn]] void throw_error(ErrorCode code, const std::string& message);

}  // namespace flashomni

// Throws Error(kInvalidArgument) with a printf-style sentence: function, argument, value, allowed.
#define FO_CHECK(condition, ...)                                         \
  do {                                                                   \
    if (!(condition)) [[unlikely]]                                       \
      ::flashomni::throw_error(::flashomni::ErrorCode::kInvalidArgument, \
                               ::flashomni::format(__VA_ARGS__));        \
  } while (false)

// Throws Error(code) unconditionally.
#define FO_FAIL(code, ...) \
  ::flashomni::throw_error(::flashomni::ErrorCode::code, ::flashomni::format(__VA_ARGS__))

// A programmer's error, checked in debug builds only.
#define FO_ASSERT(condition) assert(condition)
