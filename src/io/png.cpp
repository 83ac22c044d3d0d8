#include "flashomni/png.h"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image_write.h>
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "io/atomic_write.h"

namespace flashomni {
namespace {

// Where chunks may be inserted: behind the signature and IHDR, which have a fixed length.
constexpr std::size_t kAfterHeader = 8 + 25;

std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

// CRC of the PNG specification, bit by bit: text chunks are short.
std::uint32_t crc(std::string_view bytes) {
  std::uint32_t remainder = 0xffffffffu;
  for (const char byte : bytes) {
    remainder ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) {
      remainder = remainder >> 1 ^ ((remainder & 1u) ? 0xedb88320u : 0u);
    }
  }
  return ~remainder;
}

// tEXt holds Latin-1, which ASCII is; everything else needs iTXt.
std::string text_chunk(const std::string& keyword, const std::string& value) {
  const bool printable = std::ranges::all_of(keyword, [](char c) { return c >= ' ' && c <= '~'; });
  FO_CHECK(printable && !keyword.empty() && keyword.size() <= 79,
           "write_png: keyword \"%s\" must be 1 to 79 printable ASCII characters", keyword.c_str());
  const bool ascii = std::ranges::all_of(value, [](char c) { return c > 0; });
  const std::string uncompressed_no_language(5, '\0');
  const std::string body =
      ascii ? "tEXt" + keyword + '\0' + value : "iTXt" + keyword + uncompressed_no_language + value;
  return big_endian(static_cast<std::uint32_t>(body.size() - 4)) + body + big_endian(crc(body));
}

std::string encode_pixels(const Picture& picture) {
  int length = 0;
  unsigned char* bytes = stbi_write_png_to_mem(picture.rgb.data(), picture.width * 3, picture.width,
                                               picture.height, 3, &length);
  if (!bytes) FO_FAIL(kOutOfMemory, "write_png: cannot encode the picture");
  std::string png(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(length));
  STBIW_FREE(bytes);
  return png;
}

}  // namespace

std::string encode_png(const Picture& picture, const std::map<std::string, std::string>& text) {
  const auto samples = static_cast<std::size_t>(picture.width) * picture.height * 3;
  FO_CHECK(picture.width > 0 && picture.height > 0 && picture.rgb.size() == samples,
           "write_png: a picture of %d x %d pixels with %zu bytes", picture.width, picture.height,
           picture.rgb.size());
  std::string png = encode_pixels(picture);
  std::string chunks;
  for (const auto& [keyword, value] : text) chunks += text_chunk(keyword, value);
  return png.insert(kAfterHeader, chunks);
}

Picture decode_png(std::span<const std::uint8_t> bytes) {
  constexpr int kMaxPixels = 1 << 26;
  if (bytes.size() > kMaxPixels * std::size_t{4})
    FO_FAIL(kIo, "decode_png: the data are too large");
  const int length = static_cast<int>(bytes.size());
  int width = 0, height = 0, channels = 0;
  const bool known = stbi_info_from_memory(bytes.data(), length, &width, &height, &channels) != 0;
  if (!known || static_cast<std::int64_t>(width) * height > kMaxPixels) {
    FO_FAIL(kIo, "decode_png: the data are no PNG of at most %d pixels", kMaxPixels);
  }
  unsigned char* pixels =
      stbi_load_from_memory(bytes.data(), length, &width, &height, &channels, STBI_rgb);
  if (!pixels) FO_FAIL(kIo, "decode_png: the data are damaged: %s", stbi_failure_reason());
  Picture picture{width, height, {pixels, pixels + std::size_t{3} * width * height}};
  stbi_image_free(pixels);
  return picture;
}

void write_png(const std::filesystem::path& path, const Picture& picture,
               const std::map<std::string, std::string>& text) {
  const std::string png = encode_png(picture, text);
  const std::string_view parts[] = {png};
  write_whole("write_png", path, parts);
}

}  // namespace flashomni
