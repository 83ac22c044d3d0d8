#include "gmock/gmock.h"

#include "flashomni/policy.h"

#include "errors.h"

namespace flashomni {
namespace {

using testing::IsEmpty;

std::string make_error(const char* policy, const PolicyOptions& options) {
  return test::error_of([&] { make_policy(policy, options); });
}

std::string joined_names() {
  std::string names;
  for (const PolicyInfo& info : list_policies()) names += (names.empty() ? "" : ", ") + info.name;
  return names;
}

SparseSymbols small_symbols(TextPosition text) {
  const BlockGrid grid(8, 1, make_segments(40, text == TextPosition::kNone ? 0 : 12, text));
  return {grid, grid, 2};
}

TEST(Policies, AreFoundUnderTheirListedNames) {
  ASSERT_THAT(list_policies(), testing::Not(IsEmpty()));
  for (const PolicyInfo& info : list_policies()) {
    EXPECT_THAT(info.summary, testing::Not(IsEmpty()));
    if (info.name == "static") continue;  // needs a file
    EXPECT_EQ(make_policy(info.name, {})->name(), info.name);
  }
}

TEST(Policies, RejectUnknownNamesAndOptions) {
  EXPECT_EQ(make_error("top-k", {}),
            "make_policy: there is no policy \"top-k\"; there are " + joined_names());
  EXPECT_EQ(make_error("dense", {{"tau-q", "0"}}),
            "policy dense: there is no option \"tau-q\"; there are none");
  EXPECT_EQ(make_error("flashomni", {{"tau", "0"}}),
            "policy flashomni: there is no option \"tau\"; there are tau-q, tau-kv, scope, "
            "sim-threshold, keep-text-kv, subtract-k-mean, log-count-bias");
}

TEST(Policies, RejectValuesWithTheValuesAllowed) {
  EXPECT_EQ(make_error("flashomni", {{"tau-q", "half"}}),
            "policy flashomni: tau-q is \"half\", must be a number from -1 to 1");
  EXPECT_EQ(make_error("flashomni", {{"tau-kv", "1.5"}}),
            "policy flashomni: tau-kv is \"1.5\", must be a number from -1 to 1");
  EXPECT_EQ(make_error("flashomni", {{"tau-kv", "nan"}}),
            "policy flashomni: tau-kv is \"nan\", must be a number from -1 to 1");
  EXPECT_EQ(make_error("flashomni", {{"tau-kv", "0.5 "}}),
            "policy flashomni: tau-kv is \"0.5 \", must be a number from -1 to 1");
  EXPECT_EQ(make_error("flashomni", {{"scope", "block"}}),
            "policy flashomni: scope is \"block\", must be head or layer");
  EXPECT_EQ(make_error("flashomni", {{"keep-text-kv", "yes"}}),
            "policy flashomni: keep-text-kv is \"yes\", must be 1, 0, true or false");
  EXPECT_EQ(make_error("flashomni", {{"sim-threshold", "2"}}),
            "policy flashomni: sim-threshold is \"2\", must be a number from -1 to 1");
}

TEST(Policies, DenseLeavesSymbolsAsTheyAre) {
  const auto policy = make_policy("dense", {});
  EXPECT_TRUE(policy->is_dense());
  EXPECT_FALSE(policy->needs());
  SparseSymbols symbols = small_symbols(TextPosition::kFirst);
  policy->select({}, symbols);
  EXPECT_EQ(symbols, small_symbols(TextPosition::kFirst));
}

TEST(Policies, WholeLayerCachingLeavesNothingLive) {
  for (const char* name : {"taylorseer", "fora", "layer-cache"}) {
    const auto policy = make_policy(name, {});
    EXPECT_FALSE(policy->is_dense());
    SparseSymbols symbols = small_symbols(TextPosition::kFirst);
    policy->select({}, symbols);
    EXPECT_EQ(symbols.stats().live_fraction(), 0) << name;
    EXPECT_TRUE(policy->traits().caches_layers) << name;
    EXPECT_EQ(policy->traits().max_order, std::string(name) == "fora" ? 0 : kMaxForecastOrder);
  }
}

TEST(Pab, BroadcastsAllAttentionBetweenTwoSharesOfTheSteps) {
  const auto policy = make_policy("pab", {{"broadcast-from", ".25"}, {"broadcast-to", ".75"}});
  for (int step = 0; step < 8; ++step) {
    SparseSymbols symbols = small_symbols(TextPosition::kFirst);
    policy->select({.step = step, .num_steps = 8}, symbols);
    EXPECT_EQ(symbols.stats().live_fraction(), step >= 2 && step < 6 ? 0 : 1) << step;
  }
  EXPECT_FALSE(policy->traits().caches_layers);
  EXPECT_EQ(policy->traits().max_order, 0);
}

TEST(HeadShare, CachesHeadsThatMovedLittle) {
  const auto policy = make_policy("head-share", {{"head-change", ".2"}});
  const std::vector<float> change = {.15f, .05f};
  for (const double ramp : {1.0, .5, .1}) {
    SparseSymbols symbols = small_symbols(TextPosition::kFirst);
    policy->select({.ramp = ramp, .head_change = change}, symbols);
    for (int head = 0; head < 2; ++head) {
      for (int i = 0; i < symbols.q_grid().num_blocks(); ++i) {
        EXPECT_EQ(symbols.is_live(0, head, i), !(change[head] < .2 * ramp)) << head << ramp;
      }
    }
  }
  SparseSymbols first = small_symbols(TextPosition::kFirst);
  policy->select({}, first);
  EXPECT_EQ(first, small_symbols(TextPosition::kFirst)) << "nothing is known at the first update";
  EXPECT_TRUE(policy->traits().head_change);
  EXPECT_FALSE(make_policy("head-share", {{"head-change", "0"}})->traits().head_change);
}

TEST(FirstBlock, AsksTheEngineToReuseSteps) {
  const auto policy = make_policy("first-block", {{"reuse-below", ".25"}});
  EXPECT_EQ(policy->traits().reuse_below, .25);
  SparseSymbols symbols = small_symbols(TextPosition::kFirst);
  policy->select({}, symbols);
  EXPECT_EQ(symbols, small_symbols(TextPosition::kFirst));
  EXPECT_EQ(make_error("first-block", {{"reuse-below", "-1"}}),
            "policy first-block: reuse-below is \"-1\", must be a number from 0 to 1e+06");
}

TEST(FlashOmniPolicy, AsksForWhatItsOptionsNeed) {
  EXPECT_EQ(make_policy("flashomni", {})->needs(), BlockScoreOptions());
  EXPECT_EQ(
      make_policy("flashomni",
                  {{"sim-threshold", "0.1"}, {"subtract-k-mean", "1"}, {"log-count-bias", "true"}})
          ->needs(),
      (BlockScoreOptions{.similarity = true, .subtract_k_mean = true, .log_count_bias = true}));
  EXPECT_EQ(make_policy("flashomni", {{"tau-q", "0"}, {"tau-kv", "-1"}})->needs(), std::nullopt);
}

// Options reach the selection: the policy's symbols are those of the function it wraps.
TEST(FlashOmniPolicy, SelectsByItsOptions) {
  SparseSymbols expected = small_symbols(TextPosition::kFirst);
  BlockScores scores{.batch = 1, .num_heads = 2, .num_q_blocks = 6, .num_kv_blocks = 6};
  for (int i = 0; i < 2 * 6 * 6; ++i) scores.logits.push_back(static_cast<float>(i * 7 % 11) / 3);
  const FlashOmniOptions options{
      .tau_q = .7, .tau_kv = .25, .scope = PolicyScope::kLayer, .keep_text_kv = false};
  select_flashomni(options, .9, scores, expected);
  ASSERT_LT(expected.stats().live_fraction(), 1);

  SparseSymbols actual = small_symbols(TextPosition::kFirst);
  const PolicyOptions text = {
      {"tau-q", "0.7"}, {"tau-kv", "0.25"}, {"scope", "layer"}, {"keep-text-kv", "false"}};
  make_policy("flashomni", text)->select({.ramp = .9, .scores = &scores}, actual);
  EXPECT_EQ(actual, expected);
}

TEST(FlashOmniPolicy, SaysThatItCannotCacheWithoutText) {
  const BlockGrid with_text = small_symbols(TextPosition::kFirst).q_grid();
  const BlockGrid without = small_symbols(TextPosition::kNone).q_grid();
  EXPECT_THAT(make_policy("flashomni", {})->limitation(with_text, {}), IsEmpty());
  EXPECT_THAT(make_policy("flashomni", {{"tau-q", "0"}})->limitation(without, {}), IsEmpty());
  EXPECT_EQ(make_policy("flashomni", {})->limitation(without, {}),
            "no text tokens: caching needs a text/image split, nothing is cached");
}

}  // namespace
}  // namespace flashomni
