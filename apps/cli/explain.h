// explain.h -- why a sparse run is as much faster than the dense one as it is.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "flashomni/pipeline.h"
#include "sparsity.h"

namespace flashomni::cli {

// Sentences: where the dense time went, the ceiling that the work left out sets (Amdahl), what was
// measured, and which layers were cached or ran otherwise than asked for.
std::vector<std::string> explain(const GenerateResult& dense, const GenerateResult& sparse,
                                 const Sparsity& sparsity);

}  // namespace flashomni::cli
