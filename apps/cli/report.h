// report.h -- one or two recorded runs as a page that needs nothing else.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "flashomni/record.h"

namespace flashomni::cli {

// HTML with the data in it. `against` may be nullptr.
std::string make_report(const RunRecord& run, const RunRecord* against);

}  // namespace flashomni::cli
