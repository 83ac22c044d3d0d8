#include "flashomni/image_metrics.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "flashomni/error.h"

namespace flashomni {
namespace {

// A picture with gradients and edges; `variant` 1 is another picture of the same kind.
Picture pattern(int width, int height, int variant) {
  Picture picture{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        const int edge = variant * 17 * ((x / 3 + y / 5) % 2);
        picture.rgb.push_back((x * x * 3 + y * (5 + variant) + x * y * (c + 1) + edge) % 256);
      }
    }
  }
  return picture;
}

Picture with_small_noise(Picture picture) {
  for (int i = 0; i < picture.width * picture.height * 3; ++i) {
    const int x = i / 3 % picture.width, y = i / 3 / picture.width;
    picture.rgb[i] = std::clamp(picture.rgb[i] + (y * 7 + x * 3) % 9 - 4, 0, 255);
  }
  return picture;
}

struct Expected {
  int width, height;
  double psnr_other, ssim_other, psnr_noisy, ssim_noisy;
};

// From scikit-image 0.26.0: peak_signal_noise_ratio and structural_similarity(channel_axis=2),
// data_range=255.
constexpr Expected kExpected[] = {
    {24, 16, 12.79258892684702, 0.6438765710731468, 39.93262336025746, 0.9993528994140849},
    {7, 7, 20.604832149566548, 0.9273156249137499, 39.95420569200593, 0.9988566062778502},
    {33, 50, 9.653282035201684, 0.34367912437670567, 39.93802374190386, 0.999386015182993},
};

TEST(ImageMetrics, AgreeWithScikitImage) {
  for (const Expected& e : kExpected) {
    const Picture a = pattern(e.width, e.height, 0), b = pattern(e.width, e.height, 1);
    const Picture noisy = with_small_noise(a);
    EXPECT_NEAR(psnr_db(a, b), e.psnr_other, 1e-9);
    EXPECT_NEAR(ssim(a, b), e.ssim_other, 1e-9);
    EXPECT_NEAR(psnr_db(a, noisy), e.psnr_noisy, 1e-9);
    EXPECT_NEAR(ssim(a, noisy), e.ssim_noisy, 1e-9);
    EXPECT_EQ(max_abs_diff(a, noisy), 4);
  }
}

TEST(ImageMetrics, OfEqualPicturesAreTheirBestValues) {
  const Picture a = pattern(20, 9, 0);
  EXPECT_EQ(psnr_db(a, a), 100);
  EXPECT_NEAR(ssim(a, a), 1, 1e-12);
  EXPECT_EQ(max_abs_diff(a, a), 0);
}

TEST(ImageMetrics, NameBothSizesWhenTheyDisagree) {
  try {
    psnr_db(pattern(8, 9, 0), pattern(9, 8, 0));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "psnr_db: the pictures are 8 x 9 and 9 x 8, sizes must agree");
  }
  EXPECT_THROW(ssim(pattern(6, 9, 0), pattern(6, 9, 0)), Error);
}

}  // namespace
}  // namespace flashomni
