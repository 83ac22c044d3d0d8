// cpu_backend.h -- the fast backend for hosts.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backend/registry.h"

namespace flashomni {

// Throws kUnsupported if options.cpu_kernels names no kernel set of this machine.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

BackendProbe probe_cpu_backend();  // the kernel set that "auto" picks

}  // namespace flashomni
