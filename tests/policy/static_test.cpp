#include <filesystem>

#include <gtest/gtest.h>

#include "flashomni/policy.h"
#include "flashomni/safetensors.h"

#include "errors.h"

namespace flashomni {
namespace {

// 2 heads, 5 q blocks, 5 kv blocks: two of text, three of image.
class StaticPolicy : public testing::Test {
 protected:
  StaticPolicy() {
    for (index_t i = 0; i < cache_.num_elements(); ++i) cache_.as<std::uint8_t>()[i] = i % 3 != 0;
    for (index_t i = 0; i < skip_.num_elements(); ++i) skip_.as<std::uint8_t>()[i] = i % 4 != 1;
  }
  ~StaticPolicy() override { std::filesystem::remove(path_); }

  std::unique_ptr<SparsityPolicy> policy_of(const std::vector<NamedTensor>& tensors) {
    write_safetensors(path_, tensors);
    return make_policy("static", {{"file", path_.string()}});
  }

  SparseSymbols select(const SparsityPolicy& policy, int layer) const {
    SparseSymbols symbols(grid_, grid_, 2);
    policy.select({.layer = layer}, symbols);
    return symbols;
  }

  SparseSymbols masked(ConstTensorView cache, ConstTensorView skip) const {
    return SparseSymbols::from_masks(grid_, grid_, 2, cache, skip);
  }

  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() /
      (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) +
       ".static_policy.safetensors");
  BlockGrid grid_{8, 1, make_segments(40, 16, TextPosition::kFirst)};
  Tensor cache_ = Tensor::host(DType::kU8, {1, 2, 5});
  Tensor skip_ = Tensor::host(DType::kU8, {1, 2, 5, 5});
};

TEST_F(StaticPolicy, AppliesOneMaskToEveryLayer) {
  const auto policy = policy_of({{"cache", cache_}, {"skip", skip_}});
  EXPECT_EQ(select(*policy, 0), masked(cache_, skip_));
  EXPECT_EQ(select(*policy, 7), masked(cache_, skip_));
  EXPECT_LT(select(*policy, 0).stats().density(), 1);
}

TEST_F(StaticPolicy, TakesMasksWithoutABatchAxisAndOneKindAlone) {
  const auto cache_only = policy_of({{"cache", cache_.view().reshape({2, 5})}});
  EXPECT_EQ(select(*cache_only, 0), masked(cache_, {}));
  const auto skip_only = policy_of({{"skip", skip_.view().reshape({2, 5, 5})}});
  EXPECT_EQ(select(*skip_only, 0), masked({}, skip_));
}

TEST_F(StaticPolicy, PrefersTheMaskOfALayer) {
  const auto policy = policy_of({{"layer.1.cache", cache_}, {"skip", skip_}});
  EXPECT_EQ(select(*policy, 0), masked({}, skip_));
  EXPECT_EQ(select(*policy, 1), masked(cache_, skip_));
}

TEST_F(StaticPolicy, NamesBothShapesWhereAMaskDoesNotFit) {
  const Tensor wrong = Tensor::host_zeros(DType::kU8, {2, 6});
  const auto policy = policy_of({{"layer.3.cache", wrong}, {"skip", cache_}});
  EXPECT_EQ(
      test::error_of([&] { select(*policy, 3); }),
      "policy static: layer.3.cache in " + path_.string() + " is [2, 6], layer 3 needs [1, 2, 5]");
  EXPECT_EQ(
      test::error_of([&] { select(*policy, 0); }),
      "policy static: skip in " + path_.string() + " is [1, 2, 5], layer 0 needs [1, 2, 5, 5]");
}

TEST_F(StaticPolicy, NeedsAFileWithMasks) {
  EXPECT_EQ(test::error_of([&] { make_policy("static", {}); }),
            "policy static: the option \"file\" is missing");
  EXPECT_EQ(test::error_of([&] {
              policy_of({{"weights", cache_}});
            }),
            "policy static: " + path_.string() + " has neither cache nor skip tensors");
}

}  // namespace
}  // namespace flashomni
