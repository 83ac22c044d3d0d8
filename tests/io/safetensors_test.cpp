#include "flashomni/safetensors.h"

#include <cstring>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "errors.h"

namespace flashomni {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

// A directory of its own for every test, gone afterwards.
class Safetensors : public testing::Test {
 protected:
  Safetensors() {
    std::string pattern = (fs::temp_directory_path() / "flashomni_io_XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
  }
  ~Safetensors() override { fs::remove_all(directory_); }

  fs::path write(const std::string& name, const std::string& bytes) const {
    std::ofstream(directory_ / name, std::ios::binary) << bytes;
    return directory_ / name;
  }
  // A file with this header text and `data_bytes` bytes of data.
  fs::path write_header(const std::string& header, std::size_t data_bytes) const {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header.size() >> 8 * i & 0xff));
    return write("x.safetensors", bytes + header + std::string(data_bytes, '\1'));
  }
  std::string error_of_header(const std::string& header, std::size_t data_bytes) const {
    const fs::path path = write_header(header, data_bytes);
    return error_of([&] { SafetensorsFile file(path); }, ErrorCode::kIo);
  }

  fs::path directory_;
};

TEST_F(Safetensors, RoundTripKeepsEveryDtypeAndShape) {
  const float f32[6] = {0, 1, -2, 3.5f, 1e-30f, 6};
  const std::uint16_t half[4] = {1, 2, 3, 0xffff};
  const std::uint8_t u8[3] = {0, 1, 255};
  const std::int32_t i32[1] = {-7};
  const std::int64_t i64[2] = {-1, std::int64_t{1} << 40};
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path,
                    {{"f32", {f32, DType::kF32, {2, 3}}},
                     {"u8", {u8, DType::kU8, {3}}},
                     {"bf16", {half, DType::kBF16, {1, 2, 1, 2}}},
                     {"f16", {half, DType::kF16, {4}}},
                     {"i32", {i32, DType::kI32, Layout{}}},
                     {"i64", {i64, DType::kI64, {2}}},
                     {"none", {f32, DType::kF32, {0, 4}}}},
                    {{"format", "pt"}});
  const SafetensorsFile file(path);
  EXPECT_THAT(file.names(), ElementsAre("bf16", "f16", "f32", "i32", "i64", "none", "u8"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const ConstTensorView v = file.tensor("f32");
  EXPECT_EQ(v.layout.to_string(), "[2, 3]");
  EXPECT_EQ(std::memcmp(v.data, f32, sizeof f32), 0);
  EXPECT_EQ(file.tensor("bf16").layout.to_string(), "[1, 2, 1, 2]");
  EXPECT_EQ(std::memcmp(file.tensor("bf16").data, half, sizeof half), 0);
  EXPECT_EQ(file.tensor("f16").dtype, DType::kF16);
  EXPECT_EQ(file.tensor("i32").rank(), 0);
  EXPECT_EQ(*file.tensor("i32").as<std::int32_t>(), -7);
  EXPECT_EQ(std::memcmp(file.tensor("i64").data, i64, sizeof i64), 0);
  EXPECT_EQ(file.tensor("none").layout.num_elements(), 0);
  EXPECT_EQ(file.tensor("u8").as<std::uint8_t>()[2], 255);
  for (const std::string& name : file.names()) {
    const ConstTensorView view = file.tensor(name);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % size_in_bytes(view.dtype), 0u) << name;
  }
  // The widest dtypes first, so that none is misaligned in the file.
  const char* const widest_first[] = {"i64", "f32", "i32", "bf16", "f16", "u8"};
  for (std::size_t i = 1; i < std::size(widest_first); ++i) {
    EXPECT_LT(file.tensor(widest_first[i - 1]).data, file.tensor(widest_first[i]).data) << i;
  }
  EXPECT_TRUE(file.contains("u8"));
  EXPECT_FALSE(file.contains("U8"));
}

TEST_F(Safetensors, ReadsBooleansAndAHeaderPaddedWithSpaces) {
  const auto path =
      write_header(R"({"b":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}    )", 3);
  EXPECT_EQ(SafetensorsFile(path).tensor("b").as<std::uint8_t>()[2], 1);
}

TEST_F(Safetensors, GivesAlignedViewsOfMisalignedTensors) {
  std::string header = R"({"odd":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
                           "none":{"dtype":"F32","shape":[0],"data_offsets":[3,3]},
                           "wide":{"dtype":"I32","shape":[2],"data_offsets":[3,11]},
                           "long":{"dtype":"I64","shape":[1],"data_offsets":[11,19]}})";
  header.append(8 - header.size() % 8, ' ');  // the data section is aligned, its tensors are not
  const SafetensorsFile file(write_header(header, 19));
  EXPECT_EQ(file.tensor("none").layout.num_elements(), 0);
  const ConstTensorView wide = file.tensor("wide"), longer = file.tensor("long");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(wide.data) % 4, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(longer.data) % 8, 0u);
  EXPECT_EQ(wide.as<std::int32_t>()[1], 0x01010101);
  EXPECT_EQ(*longer.as<std::int64_t>(), 0x0101010101010101);
  EXPECT_EQ(file.tensor("wide").data, wide.data) << "one copy";
}

TEST_F(Safetensors, WriterReplacesTheFileAndLeavesNothingBeside) {
  const float value = 4;
  const fs::path path = write("x.safetensors", "something else");
  write_safetensors(path, {{"a", {&value, DType::kF32, {1}}}});
  EXPECT_EQ(*SafetensorsFile(path).tensor("a").as<float>(), 4);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1);
  EXPECT_THAT(error_of([&] { write_safetensors(directory_ / "no/x", {}); }, ErrorCode::kIo),
              HasSubstr("write_safetensors: cannot write"));
  EXPECT_THAT(error_of([&] {
                write_safetensors(
                    path, {{"a", {&value, DType::kF32, {1}}}, {"a", {&value, DType::kF32, {1}}}});
              }),
              HasSubstr("a is given twice"));
}

TEST_F(Safetensors, ReadsShardsThroughTheirIndex) {
  const float a = 1, b = 2;
  write_safetensors(directory_ / "m-1.safetensors", {{"a", {&a, DType::kF32, {1}}}});
  write_safetensors(directory_ / "m-2.safetensors", {{"b", {&b, DType::kF32, {1}}}});
  const fs::path index = write("m.safetensors.index.json",
                               R"({"metadata":{"total_size":8},"weight_map":
                                   {"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  SafetensorsFile first(index);
  const SafetensorsFile file(std::move(first));
  EXPECT_THAT(file.names(), ElementsAre("a", "b"));
  EXPECT_EQ(*file.tensor("b").as<float>(), 2);
}

TEST_F(Safetensors, NamesWhatIsWrongWithAnIndex) {
  const float a = 1;
  write_safetensors(directory_ / "m-1.safetensors", {{"a", {&a, DType::kF32, {1}}}});
  const auto error = [&](const std::string& json) {
    const fs::path index = write("m.safetensors.index.json", json);
    return error_of([&] { SafetensorsFile file(index); }, ErrorCode::kIo);
  };
  EXPECT_THAT(error("{"), HasSubstr("the index is not JSON"));
  EXPECT_THAT(error("{}"), HasSubstr("no weight_map"));
  EXPECT_THAT(error(R"({"weight_map":{"a":1}})"), HasSubstr("of a is not a file name"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"../m-1.safetensors"}})"),
              HasSubstr("not a plain file name"));
  EXPECT_THAT(error(R"({"weight_map":{"b":"m-1.safetensors"}})"),
              HasSubstr("tensor b is not in m-1.safetensors"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"m-2.safetensors"}})"), HasSubstr("cannot open"));
}

TEST_F(Safetensors, NamesWhatIsWrongWithAFile) {
  const auto error = [&](const std::string& bytes) {
    const fs::path path = write("x.safetensors", bytes);
    return error_of([&] { SafetensorsFile file(path); }, ErrorCode::kIo);
  };
  EXPECT_THAT(error(""), HasSubstr("has 0 bytes, too few"));
  EXPECT_THAT(error("1234567"), HasSubstr("has 7 bytes, too few"));
  EXPECT_THAT(error("12345678{}"), HasSubstr("the header claims"));
  EXPECT_THAT(error(std::string("\3\0\0\0\0\0\0\0{}", 10)), HasSubstr("claims 3 bytes"));
  EXPECT_THAT(error(std::string("\2\0\0\0\0\0\0\0[]", 10)), HasSubstr("not a JSON object"));
  EXPECT_THAT(error(std::string("\2\0\0\0\0\0\0\0{,", 10)), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of([&] { SafetensorsFile file(directory_ / "none"); }, ErrorCode::kIo),
              HasSubstr("No such file"));
  EXPECT_THAT(error_of([&] { SafetensorsFile file{directory_}; }, ErrorCode::kIo),
              HasSubstr("Is a directory"));
}

TEST_F(Safetensors, NamesWhatIsWrongWithAHeader) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
  };
  EXPECT_THAT(error_of_header(entry("F32", "[2]", "[0,8]"), 7), HasSubstr("truncated"));
  EXPECT_THAT(error_of_header(entry("F32", "[2]", "[8,0]"), 8), HasSubstr("data_offsets 8 to 0"));
  EXPECT_THAT(error_of_header(entry("F32", "[3]", "[0,8]"), 8), HasSubstr("need 12"));
  EXPECT_THAT(error_of_header(entry("F32", "[4294967296,4294967296]", "[0,8]"), 8),
              HasSubstr("too large"));
  EXPECT_THAT(error_of_header(entry("F32", "[4611686018427387904]", "[0,0]"), 0),
              HasSubstr("need 0"));
  EXPECT_THAT(error_of_header(entry("F32", "[-1]", "[0,8]"), 8), HasSubstr("needs a dtype"));
  EXPECT_THAT(error_of_header(entry("F32", "[2]", "[0]"), 8), HasSubstr("needs a dtype"));
  EXPECT_THAT(error_of_header(entry("F32", "2", "[0,8]"), 8), HasSubstr("needs a dtype"));
  EXPECT_THAT(error_of_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]},
                                  "b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
                              8),
              HasSubstr("the data of tensors b and a overlap"));
  EXPECT_THAT(error_of_header(R"({"a":3})", 8), HasSubstr("needs a dtype"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":3})", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{"k":3}})", 0), HasSubstr("__metadata__.k"));
}

TEST_F(Safetensors, RejectsATensorOnlyWhenItIsAskedFor) {
  const SafetensorsFile file(write_header(
      R"({"e":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},
          "deep":{"dtype":"U8","shape":[1,1,1,1,2],"data_offsets":[2,4]}})",
      4));
  EXPECT_THAT(error_of([&] { file.tensor("e"); }, ErrorCode::kUnsupported), HasSubstr("F8_E4M3"));
  EXPECT_THAT(error_of([&] { file.tensor("deep"); }, ErrorCode::kUnsupported),
              HasSubstr("5 axes, at most 4"));
  EXPECT_THAT(error_of([&] { file.tensor("f"); }, ErrorCode::kIo), HasSubstr("has no tensor f"));
}

}  // namespace
}  // namespace flashomni
