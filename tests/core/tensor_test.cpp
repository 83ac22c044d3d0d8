#include "flashomni/tensor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "flashomni/error.h"

namespace flashomni {
namespace {

TEST(TensorView, SliceMovesThePointerAndKeepsTheStrides) {
  Tensor tensor = Tensor::host_zeros(DType::kF32, {3, 4, 5});
  const TensorView part = tensor.view().slice(1, 1, 3);
  EXPECT_EQ(part.as<float>(), tensor.as<float>() + 5);
  EXPECT_EQ(part.size(1), 2);
  EXPECT_EQ(part.stride(0), 20);
  EXPECT_FALSE(part.layout.is_contiguous());
}

TEST(TensorView, ReshapeOfANonContiguousViewIsAnError) {
  Tensor tensor = Tensor::host_zeros(DType::kF32, {3, 4});
  EXPECT_NO_THROW(tensor.view().reshape({12}));
  EXPECT_THROW(tensor.view().slice(1, 0, 2).reshape({6}), Error);
  EXPECT_THROW(tensor.view().reshape({11}), Error);
}

TEST(Tensor, IsAlignedAndMovesWithoutCopying) {
  Tensor tensor = Tensor::host(DType::kBF16, {7, 3});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % 64, 0u);
  const void* data = tensor.view().data;
  const Tensor moved = std::move(tensor);
  EXPECT_EQ(moved.view().data, data);
  EXPECT_FALSE(tensor);
}

TEST(Tensor, OfAHugePageOrMoreBeginsAtOne) {
  constexpr index_t kHugePage = 2 << 20;
  for (const index_t bytes : {kHugePage, kHugePage + 1, 5 * kHugePage}) {
    const Tensor tensor = Tensor::host_zeros(DType::kU8, {bytes});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % kHugePage, 0u);
  }
}

TEST(Convert, RoundsAndPacksWhateverTheStrides) {
  Tensor tensor = Tensor::host(DType::kF32, {2, 3});
  const float values[] = {1, -2, 3.00390625f, 4, 5, 6};  // 3 + 2^-8: half way between two bf16
  std::copy(std::begin(values), std::end(values), tensor.as<float>());
  const Tensor column = convert(tensor.view().slice(1, 1, 3), DType::kBF16);
  ASSERT_EQ(column.num_elements(), 4);
  const std::uint16_t expected[] = {0xc000, 0x4040, 0x40a0, 0x40c0};  // -2, 3 (even), 5, 6
  EXPECT_TRUE(std::equal(std::begin(expected), std::end(expected), column.as<std::uint16_t>()));
  EXPECT_EQ(convert(column, DType::kF32).as<float>()[1], 3.0f);
}

TEST(Convert, RejectsIntegersAndDevices) {
  const Tensor integers = Tensor::host_zeros(DType::kI32, {2});
  EXPECT_THROW(convert(integers, DType::kF32), Error);
  TensorView elsewhere = integers;
  elsewhere.dtype = DType::kF32;
  elsewhere.device.type = DeviceType::kCuda;
  EXPECT_THROW(convert(elsewhere, DType::kF32), Error);
}

TEST(Layout, RejectsFiveAxesAndNegativeSizes) {
  EXPECT_THROW(Layout({1, 2, 3, 4, 5}), Error);
  EXPECT_THROW(Layout({2, -1}), Error);
}

}  // namespace
}  // namespace flashomni
