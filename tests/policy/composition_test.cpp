// SKIP+CACHE of any two, and flashomni as one of them.
#include <set>

#include "gmock/gmock.h"

#include "flashomni/policy.h"

#include "errors.h"

namespace flashomni {
namespace {

using testing::HasSubstr;

std::vector<std::string> names_of(PolicyKind kind) {
  std::vector<std::string> names;
  for (const PolicyInfo& info : list_policies()) {
    if (info.kind == kind) names.push_back(info.name);
  }
  return names;
}

// 12 text and 52 image tokens (4 x 13) in blocks of 8; 2 heads; logits of no special order.
struct Case {
  BlockGrid grid{8, 1, make_segments(64, 12, TextPosition::kFirst)};
  BlockScores scores{.batch = 1, .num_heads = 2, .num_q_blocks = 9, .num_kv_blocks = 9};
  std::vector<TokenPlace> places = place_tokens({1, 4, 13}, TokenOrder::kRaster, 1);
  std::vector<float> head_change = {.05f, .5f};

  Case() {
    for (int i = 0; i < 2 * 9 * 9; ++i) scores.logits.push_back(static_cast<float>(i * 7 % 11) / 2);
    scores.q_similarity.assign(2 * 9, .9f);
    scores.k_similarity.assign(2 * 9, .9f);
  }
  PolicyContext context() const {
    return {.step = 10,
            .num_steps = 20,
            .scores = &scores,
            .places = places,
            .head_change = head_change};
  }
  SparseSymbols select(const std::string& name, const PolicyOptions& options = {}) const {
    SparseSymbols symbols(grid, grid, 2);
    make_policy(name, options)->select(context(), symbols);
    return symbols;
  }
};

TEST(Composition, CachesAsOneAndSkipsAsTheOther) {
  const Case c;
  for (const std::string& skip : names_of(PolicyKind::kSkip)) {
    for (const std::string& cache : names_of(PolicyKind::kCache)) {
      SCOPED_TRACE(skip + "+" + cache);
      const SparseSymbols both = c.select(skip + "+" + cache);
      const SparseSymbols skipped = c.select(skip), cached = c.select(cache);
      for (int head = 0; head < 2; ++head) {
        for (int i = 0; i < 9; ++i) {
          EXPECT_EQ(both.is_live(0, head, i), cached.is_live(0, head, i));
          for (int j = 0; j < 9; ++j) {
            EXPECT_EQ(both.is_used(0, head, i, j),
                      cached.is_live(0, head, i) && skipped.is_used(0, head, i, j));
          }
        }
      }
      EXPECT_EQ(make_policy(skip + "+" + cache, {})->name(), skip + "+" + cache);
    }
  }
}

// Where the caching policy leaves nothing live, updates are what can be skipped in.
TEST(Composition, SkipsOnUpdatesWhereNothingElseIsLive) {
  const Case c;
  for (const std::string& name : names_of(PolicyKind::kCache)) {
    const auto policy = make_policy("topk+" + name, {});
    const PolicyTraits of_cache = make_policy(name, {})->traits();
    const bool all =
        name == "taylorseer" || name == "fora" || name == "layer-cache" || name == "pab";
    EXPECT_EQ(policy->traits().skips_on_updates, all) << name;
    EXPECT_EQ(policy->traits().caches_layers, of_cache.caches_layers) << name;
    EXPECT_EQ(policy->traits().max_order, of_cache.max_order) << name;
    EXPECT_EQ(policy->traits().head_change, of_cache.head_change) << name;
    EXPECT_EQ(policy->traits().reuse_below, of_cache.reuse_below) << name;
    SparseSymbols symbols(c.grid, c.grid, 2);
    policy->select_update(c.context(), symbols);
    EXPECT_EQ(symbols, all ? c.select("topk") : SparseSymbols(c.grid, c.grid, 2)) << name;
  }
}

TEST(Composition, HasTheOptionsOfBoth) {
  EXPECT_THAT(find_policy("topk+guidance").options, testing::ElementsAre("keep", "tau-q", "scope"));
  const Case c;
  EXPECT_EQ(c.select("topk+guidance", {{"keep", "1"}, {"tau-q", "0"}}).stats().density(), 1);
  EXPECT_LT(c.select("topk+guidance", {{"keep", ".3"}, {"tau-q", "0"}}).stats().density(), 1);
  EXPECT_LT(c.select("topk+guidance", {{"keep", "1"}, {"tau-q", ".8"}}).stats().density(), 1);
  EXPECT_EQ(test::error_of([] {
              make_policy("topk+guidance", {{"keep", "2"}});
            }),
            "policy topk: keep is \"2\", must be a number from 0 to 1");
  EXPECT_EQ(test::error_of([] {
              make_policy("topk+guidance", {{"cdf", ".5"}});
            }),
            "policy topk+guidance: there is no option \"cdf\"; there are keep, tau-q, scope");
}

TEST(Composition, FindsEachOptionInOneOfTheTwo) {
  std::set<std::string_view> of_skip;
  for (const std::string& name : names_of(PolicyKind::kSkip)) {
    for (std::string_view option : find_policy(name).options) of_skip.insert(option);
  }
  for (const std::string& name : names_of(PolicyKind::kCache)) {
    for (std::string_view option : find_policy(name).options) {
      EXPECT_FALSE(of_skip.contains(option)) << name << " " << option;
    }
  }
}

TEST(Composition, RejectsTwoOfAKindAndWhatIsComplete) {
  for (const char* name : {"topk+radial", "guidance+topk", "layer-cache+guidance",
                           "flashomni+layer-cache", "topk+dense", "topk+guidance+guidance"}) {
    EXPECT_THAT(test::error_of([&] { make_policy(name, {}); }), HasSubstr("make_policy: ")) << name;
  }
  EXPECT_THAT(test::error_of([] { find_policy("topk+radial"); }),
              HasSubstr("make_policy: \"topk+radial\" must be SKIP+CACHE, with SKIP one of "
                        "spargeattn, topk, "));
  EXPECT_THAT(test::error_of([] { find_policy("topk+"); }), HasSubstr("there is no policy \"\""));
}

TEST(Composition, AsksForTheScoresOfBoth) {
  EXPECT_EQ(make_policy("streaming+layer-cache", {})->needs(), std::nullopt);
  EXPECT_EQ(make_policy("topk+layer-cache", {})->needs(), BlockScoreOptions());
  EXPECT_EQ(make_policy("spargeattn+guidance", {})->needs(),
            (BlockScoreOptions{.similarity = true, .subtract_k_mean = true}));
}

TEST(Composition, TellsTheLimitsOfBoth) {
  const BlockGrid no_text(8, 1, make_segments(64, 0, TextPosition::kNone));
  const std::string text = "no text tokens: caching needs a text/image split, nothing is cached";
  const std::string places =
      "the model does not say where the image tokens stand: radial skips nothing";
  const auto policy = make_policy("radial+guidance", {});
  const Case c;
  EXPECT_EQ(policy->limitation(no_text, {}), places + "; " + text);
  EXPECT_EQ(policy->limitation(no_text, c.places), text);
  EXPECT_EQ(policy->limitation(c.grid, {}), places);
  EXPECT_EQ(policy->limitation(c.grid, c.places), "");
}

// The policy of the paper is caching by text composed with skipping by mass.
TEST(Composition, MakesFlashOmni) {
  const Case c;
  EXPECT_EQ(
      c.select(
          "flashomni",
          {{"tau-q", ".7"}, {"tau-kv", "0.25"}, {"sim-threshold", ".6"}, {"subtract-k-mean", "1"}}),
      c.select("spargeattn+guidance", {{"tau-q", ".7"}, {"cdf", ".75"}}));
}

}  // namespace
}  // namespace flashomni
