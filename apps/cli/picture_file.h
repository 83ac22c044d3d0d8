// picture_file.h -- reading PNG files.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "flashomni/pipeline.h"  // Picture

namespace flashomni::cli {

// 8-bit RGB with alpha, not premultiplied, row-major.
struct RgbaPicture {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgba;  // [height, width, 4]
};

// Throw Error(kIo) if `path` is no PNG that can be read.
Picture read_png(const std::filesystem::path& path);
RgbaPicture read_rgba_png(const std::filesystem::path& path);

}  // namespace flashomni::cli
