// errors.h -- the text of the Error that a call must throw.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "flashomni/error.h"

namespace flashomni::test {

template <typename Call>
std::string error_of(Call&& call, ErrorCode code = ErrorCode::kInvalidArgument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace flashomni::test
