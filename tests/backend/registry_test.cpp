#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/backend.h"
#include "flashomni/error.h"

namespace flashomni {
namespace {

TEST(Registry, MakesEveryBackendThatIsAvailable) {
  for (const BackendInfo& info : list_backends()) {
    SCOPED_TRACE(info.name);
    EXPECT_FALSE(info.detail.empty());
    if (info.available) {
      const auto backend = make_backend(info.name);
      EXPECT_EQ(backend->name(), info.name);
      EXPECT_FALSE(backend->description().empty());
    } else {
      EXPECT_THROW(make_backend(info.name), Error);
    }
  }
}

TEST(Registry, AutoIsTheFirstThatIsAvailable) {
  for (const BackendInfo& info : list_backends()) {
    if (!info.available) continue;
    EXPECT_EQ(make_backend("auto")->name(), info.name);
    return;
  }
  FAIL() << "the reference backend runs everywhere";
}

TEST(Registry, AnUnknownNameListsTheKnownOnes) {
  try {
    make_backend("tpu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("unknown backend 'tpu'"),
                                             testing::HasSubstr("reference")));
  }
}

}  // namespace
}  // namespace flashomni
