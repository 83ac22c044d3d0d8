// policies.h -- the constructors of the built-in policies, one for each row of registry.cpp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "policy/options.h"

namespace flashomni {

std::unique_ptr<SparsityPolicy> make_dense(const OptionReader& options);
std::unique_ptr<SparsityPolicy> make_flashomni(const OptionReader& options);
std::unique_ptr<SparsityPolicy> make_static(const OptionReader& options);
std::unique_ptr<SparsityPolicy> make_layer_cache(const OptionReader& options);

}  // namespace flashomni
