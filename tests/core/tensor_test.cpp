#include "flashomni/tensor.h"

#include <gtest/gtest.h>

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

TEST(Layout, RejectsFiveAxesAndNegativeSizes) {
  EXPECT_THROW(Layout({1, 2, 3, 4, 5}), Error);
  EXPECT_THROW(Layout({2, -1}), Error);
}

}  // namespace
}  // namespace flashomni
