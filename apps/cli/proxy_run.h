// proxy_run.h -- draws a dense picture and watches its attention for judge().
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "generation.h"
#include "proxy.h"

namespace flashomni::cli {

// The request of `session`, drawn dense, and what each of `policies` would select from its step
// `first_update` on. The policies agree on block, ramp and token order, and read neither
// head_change nor hidden states. Layers are left out, evenly, where all of them would take more
// than about a gigabyte or minutes. Shows its progress; throws Error (kUnsupported) as soon as it
// is clear that it takes longer than `seconds`.
RunTrace watch_dense_run(Session& session, const std::vector<Sparsity>& policies, int first_update,
                         double seconds);

}  // namespace flashomni::cli
