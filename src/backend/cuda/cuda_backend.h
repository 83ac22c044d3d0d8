// cuda_backend.h -- the backend for NVIDIA GPUs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backend/registry.h"

namespace flashomni {

// Throws kUnsupported if there is no GPU at options.device_index that has kernels.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

BackendProbe probe_cuda_backend();  // of device 0

}  // namespace flashomni
