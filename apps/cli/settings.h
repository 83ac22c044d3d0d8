// settings.h -- several sparse settings on one command line or in one file.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "sparsity.h"

namespace flashomni::cli {

struct Setting {
  std::string name;
  Sparsity sparsity;
};

// "[NAME=]BASE[,option=value]...", where BASE is a preset's name, FILE.json or a policy; without a
// name the text itself is the name. Throws UsageError for what does not exist.
Setting parse_setting(const std::string& text);

// A JSON object of name -> "BASE[,option=value]...".
std::vector<Setting> read_settings(const std::string& path);

// The policy with every option that counts: equal texts draw equal pictures.
std::string identity(const Sparsity& sparsity);

}  // namespace flashomni::cli
