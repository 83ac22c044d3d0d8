// picture_file.h -- reading PNG files.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "flashomni/pipeline.h"  // Picture

namespace flashomni::cli {

// Throws Error(kIo) if `path` is no PNG that can be read.
Picture read_png(const std::filesystem::path& path);

}  // namespace flashomni::cli
