#include "flashomni/png.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_image.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "flashomni/error.h"

namespace flashomni {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Png : public testing::Test {
 protected:
  Png()
      : folder_(fs::path(testing::TempDir()) /
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::create_directories(folder_);
  }
  ~Png() override { fs::remove_all(folder_); }

  std::string bytes_of(const fs::path& path) const {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  fs::path folder_;
};

Picture gradient(int width, int height) {
  Picture picture{width, height, {}};
  for (int i = 0; i < width * height * 3; ++i) {
    picture.rgb.push_back(static_cast<std::uint8_t>(i * 7));
  }
  return picture;
}

TEST_F(Png, IsReadBackBitForBit) {
  const Picture picture = gradient(13, 5);
  write_png(folder_ / "a.png", picture, {{"parameters", "seed: 3"}});
  int width = 0, height = 0, channels = 0;
  unsigned char* pixels =
      stbi_load((folder_ / "a.png").c_str(), &width, &height, &channels, /*wanted=*/0);
  ASSERT_NE(pixels, nullptr) << stbi_failure_reason();
  EXPECT_EQ(width, 13);
  EXPECT_EQ(height, 5);
  EXPECT_EQ(channels, 3);
  EXPECT_EQ(std::vector<std::uint8_t>(pixels, pixels + picture.rgb.size()), picture.rgb);
  stbi_image_free(pixels);
}

TEST_F(Png, HoldsTextChunksBehindTheHeader) {
  write_png(folder_ / "a.png", gradient(2, 2), {{"parameters", "seed: 3"}});
  // length 18, type, keyword, zero, value; CRC-32 computed with zlib.
  const std::string chunk =
      std::string("\0\0\0\x12tEXtparameters\0seed: 3", 26) + "\x57\x26\x37\xEF";
  EXPECT_EQ(bytes_of(folder_ / "a.png").substr(33, chunk.size()), chunk);
}

TEST_F(Png, KeepsTextThatIsNotAscii) {
  write_png(folder_ / "a.png", gradient(2, 2), {{"parameters", "caf\xC3\xA9"}});
  EXPECT_THAT(bytes_of(folder_ / "a.png"),
              HasSubstr(std::string("iTXtparameters\0\0\0\0\0caf\xC3\xA9", 24)));
}

TEST_F(Png, LeavesNothingBehindWhenItCannotWrite) {
  fs::create_directories(folder_ / "a.png" / "occupied");
  try {
    write_png(folder_ / "a.png", gradient(2, 2));
    FAIL() << "a folder was overwritten";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_THAT(error.what(), HasSubstr("write_png: cannot write " + (folder_ / "a.png").string()));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(Png, RejectsPicturesAndKeywordsThatAreNone) {
  EXPECT_THROW(write_png(folder_ / "a.png", Picture{2, 2, {0, 0, 0}}), Error);
  EXPECT_THROW(write_png(folder_ / "a.png", gradient(2, 2), {{"", "x"}}), Error);
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace flashomni
