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

namespace {

std::vector<std::uint8_t> load(const std::filesystem::path& path, int channels, int& width,
                               int& height) {
  int in_file = 0;
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load(path.c_str(), &width, &height, &in_file, channels), stbi_image_free);
  if (!pixels) throw Error(ErrorCode::kIo, path.string() + ": " + stbi_failure_reason());
  return {pixels.get(), pixels.get() + static_cast<std::size_t>(channels) * width * height};
}

}  // namespace

Picture read_png(const std::filesystem::path& path) {
  Picture picture;
  picture.rgb = load(path, 3, picture.width, picture.height);
  return picture;
}

RgbaPicture read_rgba_png(const std::filesystem::path& path) {
  RgbaPicture picture;
  picture.rgba = load(path, 4, picture.width, picture.height);
  return picture;
}

}  // namespace flashomni::cli
