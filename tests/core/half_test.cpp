#include "core/half.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace flashomni {
namespace {

TEST(Half, EveryFiniteValueSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(half))) continue;
    EXPECT_EQ(to_half(to_float(half)).bits, half.bits);
  }
}

TEST(Half, AgreesWithTheDefinitionOfTheFormat) {
  EXPECT_EQ(to_float(Half{0x3c00}), 1.0f);
  EXPECT_EQ(to_float(Half{0xc000}), -2.0f);
  EXPECT_EQ(to_float(Half{0x0001}), std::ldexp(1.0f, -24));
  EXPECT_EQ(to_float(Half{0x7bff}), 65504.0f);
}

TEST(Half, RoundsToNearestEvenAndOverflowsToInfinity) {
  EXPECT_EQ(to_half(1.0f + std::ldexp(1.0f, -11)).bits, 0x3c00);  // tie goes to even
  EXPECT_EQ(to_half(1.0f + std::ldexp(3.0f, -11)).bits, 0x3c02);
  EXPECT_EQ(to_half(std::ldexp(1.0f, -25)).bits, 0x0000);
  EXPECT_EQ(to_half(std::ldexp(1.5f, -25)).bits, 0x0001);
  EXPECT_EQ(to_half(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7c00);
  EXPECT_TRUE(std::isnan(to_float(to_half(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(to_bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bfloat16(1.0f + std::ldexp(1.0f, -8)).bits, 0x3f80);  // tie goes to even
  EXPECT_EQ(to_bfloat16(1.0f + std::ldexp(3.0f, -8)).bits, 0x3f82);
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace flashomni
