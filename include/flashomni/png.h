// png.h -- a picture as PNG, to and from memory or a file.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "flashomni/pipeline.h"  // Picture

namespace flashomni {

// The bytes of an 8-bit RGB PNG with `text` as text chunks, keyword -> UTF-8 value (keywords are 1
// to 79 printable ASCII characters). Throws kInvalidArgument for an empty picture or a bad keyword.
std::string encode_png(const Picture& picture, const std::map<std::string, std::string>& text = {});

// Any PNG of at most 2^26 pixels, as 8-bit RGB. Throws kIo if `bytes` are not one.
Picture decode_png(std::span<const std::uint8_t> bytes);

// encode_png() to a temporary file beside `path`, renamed, so that nothing is half-written. Throws
// what encode_png() throws, and kIo if the file cannot be written.
void write_png(const std::filesystem::path& path, const Picture& picture,
               const std::map<std::string, std::string>& text = {});

}  // namespace flashomni
