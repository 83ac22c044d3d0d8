// The tokenizer, the noise, the noise levels and the text encoder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashomni/backend.h"

#include "errors.h"
#include "golden.h"
#include "pipeline/noise.h"
#include "pipeline/scheduler.h"
#include "pipeline/text_encoder.h"
#include "pipeline/tokenizer.h"

namespace flashomni {
namespace {

using test::error_of;
using test::golden;
using test::kPenguin;
using test::kSailboat;
using test::values_of;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Of the recording against another implementation in f32; see tests/data/golden/README.md.
constexpr double kTextTolerance = 1e-4;
constexpr double kSigmaTolerance = 1e-6;
// Of the values' last bits: another log, sin and cos.
constexpr double kNoiseTolerance = 2e-6;

const WordTokenizer& tokenizer() {
  static const WordTokenizer words = WordTokenizer::load(test::model_directory() / "tokenizer");
  return words;
}

std::vector<int> golden_ids(const std::string& name) {
  const auto ids = values_of<std::int64_t>(golden().tensor(name + ".token_ids"));
  return {ids.begin(), ids.end()};
}

TEST(Tokenizer, GivesTheRecordedIds) {
  for (const auto& which : {kPenguin, kSailboat}) {
    const TokenizedPrompt prompt = tokenizer().encode(which.prompt);
    EXPECT_EQ(prompt.ids, golden_ids(which.name));
    EXPECT_THAT(prompt.warnings, IsEmpty());
  }
  EXPECT_EQ(tokenizer().encode("").ids, golden_ids("null"));
  EXPECT_EQ(tokenizer().encode(" ... ").ids, golden_ids("null"));
}

TEST(Tokenizer, IgnoresCaseAndPunctuation) {
  EXPECT_EQ(tokenizer().encode("A PENGUIN, and... a\tpalm\ntree").ids,
            tokenizer().encode("a penguin and a palm tree").ids);
  EXPECT_EQ(tokenizer().encode("a\xc3\xa9penguin").ids, tokenizer().encode("a penguin").ids);
}

TEST(Tokenizer, ProposesTheNearestWordsForAnUnknownOne) {
  const TokenizedPrompt prompt = tokenizer().encode("a penguinn");
  EXPECT_EQ(prompt.ids[1], 1);
  ASSERT_EQ(prompt.warnings.size(), 1u);
  EXPECT_EQ(prompt.warnings[0],
            "the model does not know the word \"penguinn\"; nearest known: penguin, penguins");
  // Nothing in common with any word: no proposal.
  EXPECT_EQ(tokenizer().encode("@").ids[1], 0);
  EXPECT_THAT(tokenizer().encode("7").warnings,
              ElementsAre("the model does not know the word \"7\""));
}

TEST(Tokenizer, LeavesOutWhatDoesNotFit) {
  std::string long_prompt;
  for (int i = 0; i < 40; ++i) long_prompt += "fox ";
  const TokenizedPrompt prompt = tokenizer().encode(long_prompt);
  EXPECT_EQ(prompt.ids.size(), 32u);
  EXPECT_EQ(prompt.ids[31], prompt.ids[0]);
  ASSERT_EQ(prompt.warnings.size(), 1u);
  EXPECT_THAT(prompt.warnings[0], HasSubstr("has 40 words, those after the first 32 (\"fox\")"));
  EXPECT_THAT(error_of([] { tokenizer().pad({9999}); }), HasSubstr("token id 9999, must be 0 to"));
  EXPECT_THAT(error_of([] { tokenizer().pad(std::vector<int>(33)); }),
              HasSubstr("33 token ids, at most 32"));
}

TEST(Noise, EqualsTorchRandn) {
  for (const auto& which : {kPenguin, kSailboat}) {
    const auto expected = values_of(golden().tensor(which.name + ".noise"));
    std::vector<float> noise(expected.size());
    fill_normal(which.seed, noise);
    EXPECT_LE(test::max_difference(noise, expected), kNoiseTolerance);
  }
}

TEST(Noise, DrawsTheTailAnew) {
  // torch.manual_seed(0); torch.randn(2, 3, 4), as printed by torch.
  const std::vector<float> printed{-1.1258f, -1.1524f, -0.2506f, -0.4339f, 0.8487f,  0.6920f,
                                   -0.3160f, -2.1152f, 0.4681f,  -0.1577f, 1.4437f,  0.2660f,
                                   0.1665f,  0.8744f,  -0.1435f, -0.1116f, 0.9318f,  1.2590f,
                                   2.0050f,  0.0537f,  0.6181f,  -0.4128f, -0.8411f, -2.3160f};
  std::vector<float> noise(24);
  fill_normal(0, noise);
  EXPECT_LE(test::max_difference(noise, printed), 0.5e-4 + kNoiseTolerance);
  EXPECT_THAT(error_of([&] { fill_normal(0, std::span(noise).first(15)); }),
              HasSubstr("15 values, must be at least 16"));
}

TEST(Scheduler, GivesTheRecordedNoiseLevels) {
  const auto scheduler = FlowMatchScheduler::load(test::model_directory() / "scheduler");
  EXPECT_LE(
      test::max_difference(scheduler.sigmas(20, 1024), values_of(golden().tensor("p0.sigmas"))),
      kSigmaTolerance);
  EXPECT_LE(
      test::max_difference(scheduler.sigmas(20, 960), values_of(golden().tensor("p3.sigmas"))),
      kSigmaTolerance);
  EXPECT_THAT(scheduler.sigmas(1, 1024), ElementsAre(1.0f, 0.0f));
}

class TextEncoderOf : public testing::TestWithParam<std::string> {};

TEST_P(TextEncoderOf, GivesTheRecordedEmbeddings) {
  const auto backend = make_backend(GetParam());
  const auto encoder = TextEncoder::load(test::model_directory() / "text_encoder", *backend);
  for (const std::string name : {"p0", "p3", "null"}) {
    const TextEmbedding text = encoder.encode(golden_ids(name));
    EXPECT_LE(test::max_difference(values_of(text.tokens),
                                   values_of(golden().tensor(name + ".prompt_embeds"))),
              kTextTolerance);
    EXPECT_LE(
        test::max_difference(values_of(text.pooled), values_of(golden().tensor(name + ".pooled"))),
        kTextTolerance);
  }
  EXPECT_THAT(error_of([&] { encoder.encode(std::vector<int>(31)); }),
              HasSubstr("31 token ids, the text encoder takes 32"));
  EXPECT_THAT(error_of([&] { encoder.encode(std::vector<int>(32, 864)); }),
              HasSubstr("token id 864, the text encoder has 864"));
}

INSTANTIATE_TEST_SUITE_P(Backends, TextEncoderOf, testing::Values("reference", "cpu"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashomni
