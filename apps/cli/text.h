// text.h -- text put together by printf's rules.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace flashomni::cli {

[[gnu::format(printf, 1, 2)]] std::string print(const char* pattern, ...);

}  // namespace flashomni::cli
