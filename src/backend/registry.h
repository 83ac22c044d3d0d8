// registry.h -- what a backend hands to the table in registry.cpp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "flashomni/backend.h"

namespace flashomni {

struct BackendProbe {
  bool available = false;
  std::string detail;  // ISA or GPU; when unavailable, why
};

// One backend. `probe` is cheap and does not create one.
struct BackendEntry {
  std::string_view name;
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
  BackendProbe (*probe)();
};

}  // namespace flashomni
