// png.h -- save a picture.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "flashomni/pipeline.h"  // Picture

namespace flashomni {

// Writes an 8-bit RGB PNG with `text` as text chunks, keyword -> UTF-8 value (keywords are 1 to 79
// printable ASCII characters). Writes to a temporary file beside `path` and renames it, so that
// nothing is half-written. Throws kInvalidArgument for an empty picture or a bad keyword, kIo if
// the file cannot be written.
void write_png(const std::filesystem::path& path, const Picture& picture,
               const std::map<std::string, std::string>& text = {});

}  // namespace flashomni
