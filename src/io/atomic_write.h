// atomic_write.h -- a file appears whole under its name, or not at all.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <span>
#include <string_view>

namespace flashomni {

// Writes `parts` one after the other to a temporary file beside `path` and renames it. `caller`
// begins the error text. Throws kIo.
void write_whole(std::string_view caller, const std::filesystem::path& path,
                 std::span<const std::string_view> parts);

}  // namespace flashomni
