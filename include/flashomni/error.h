// error.h -- the one exception type of the library.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

namespace flashomni {

enum class ErrorCode {
  kInvalidArgument,  // an argument is outside what the function's contract allows
  kUnsupported,      // the arguments are valid, but no kernel or format reader handles them
  kOutOfMemory,
  kIo,    // a file is missing, truncated, or not what its name promises
  kCuda,  // a CUDA call failed
};

// Every failure of the library is thrown as an Error. `what()` is one sentence of the form
// "attention: k has head_dim 64, plan was built for 128".
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace flashomni
