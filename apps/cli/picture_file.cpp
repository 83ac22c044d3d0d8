#include "picture_file.h"

#include <memory>

#include "flashomni/error.h"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace flashomni::cli {

Picture read_png(const std::filesystem::path& path) {
  Picture picture;
  int channels = 0;
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load(path.c_str(), &picture.width, &picture.height, &channels, 3), stbi_image_free);
  if (!pixels) {
    throw Error(ErrorCode::kIo, path.string() + ": " + stbi_failure_reason());
  }
  const auto size = static_cast<std::size_t>(3) * picture.width * picture.height;
  picture.rgb.assign(pixels.get(), pixels.get() + size);
  return picture;
}

}  // namespace flashomni::cli
