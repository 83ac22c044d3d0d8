// The documents about policies say what the code says.
#include <fstream>
#include <regex>
#include <sstream>

#include <gtest/gtest.h>

namespace flashomni {
namespace {

std::string read(const std::string& path) {
  std::ifstream file(std::string(FLASHOMNI_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(PolicyDocs, QuoteTheExample) {
  const std::string document = read("docs/adding_a_policy.md");
  const std::string fence = "```cpp\n";
  const auto begin = document.find(fence) + fence.size();
  const std::string quoted = document.substr(begin, document.find("```", begin) - begin);
  EXPECT_GT(quoted.size(), 500u);
  EXPECT_NE(read("examples/03_policy.cpp").find(quoted), std::string::npos);
}

TEST(PolicyDocs, NameFilesAndFunctionsThatExist) {
  const std::string document = read("docs/paper_map.md");
  const std::regex reference("`([a-z_/]+\\.(?:h|cpp))`:`(\\w+)`");
  int count = 0;
  for (auto match = std::sregex_iterator(document.begin(), document.end(), reference);
       match != std::sregex_iterator(); ++match, ++count) {
    EXPECT_NE(read((*match)[1]).find((*match)[2]), std::string::npos) << match->str();
  }
  EXPECT_GE(count, 12);
}

}  // namespace
}  // namespace flashomni
