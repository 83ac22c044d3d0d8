#include "caption_judge.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "flashomni/error.h"
#include "picture_file.h"
#include "sprite_search.h"

namespace flashomni::cli {
namespace {

constexpr int kSpriteSide = 40, kSpritesARow = 24;  // of sprites.png
// Below this correlation an object is not there; docs/quality.md says how it was chosen.
constexpr double kMinScore = 0.6;

struct Tint {
  const char* name;
  float color[3];
};
// The colours of the training pictures.
constexpr Tint kTints[] = {{"red", {222 / 255.f, 48 / 255.f, 48 / 255.f}},
                           {"orange", {245 / 255.f, 140 / 255.f, 30 / 255.f}},
                           {"yellow", {250 / 255.f, 210 / 255.f, 50 / 255.f}},
                           {"green", {60 / 255.f, 165 / 255.f, 75 / 255.f}},
                           {"blue", {45 / 255.f, 105 / 255.f, 215 / 255.f}},
                           {"purple", {135 / 255.f, 70 / 255.f, 190 / 255.f}},
                           {"pink", {245 / 255.f, 150 / 255.f, 190 / 255.f}}};

Sprite cut(const RgbaPicture& sheet, int index) {
  const int left = index % kSpritesARow * kSpriteSide, top = index / kSpritesARow * kSpriteSide;
  Sprite sprite{kSpriteSide, kSpriteSide, {}, {}, {}, {}};
  for (int y = top; y < top + kSpriteSide; ++y) {
    for (int x = left; x < left + kSpriteSide; ++x) {
      const std::uint8_t* pixel = &sheet.rgba[4 * (static_cast<std::size_t>(y) * sheet.width + x)];
      const float alpha = pixel[3] / 255.0f;
      sprite.red.push_back(alpha * pixel[0] / 255);
      sprite.green.push_back(alpha * pixel[1] / 255);
      sprite.blue.push_back(alpha * pixel[2] / 255);
      sprite.alpha.push_back(alpha);
    }
  }
  return sprite;
}

std::string code_point_of(const std::string& name) { return name.substr(0, name.find('_')); }
std::string style_of(const std::string& name) { return name.substr(name.find('_') + 1); }

Sprite tinted(const Sprite& sprite, const std::string& name) {
  for (const Tint& tint : kTints) {
    if (name == tint.name) return tint_sprite(sprite, tint.color);
  }
  return sprite;
}

}  // namespace

CaptionJudge::CaptionJudge(const std::filesystem::path& folder) {
  std::ifstream file(folder / "captions.json");
  const auto list = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  const RgbaPicture sheet = read_rgba_png(folder / "sprites.png");
  const auto names = list.value("sprites", std::vector<std::string>());
  const int rows = sheet.height / kSpriteSide;
  if (sheet.width != kSpritesARow * kSpriteSide ||
      static_cast<int>(names.size()) > rows * kSpritesARow) {
    throw Error(ErrorCode::kIo,
                (folder / "sprites.png").string() + " does not hold the sprites of captions.json");
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    sprites_[names[i]] = cut(sheet, static_cast<int>(i));
  }
}

// The sprite itself, or those of all styles where the caption leaves the style open.
std::vector<std::string> CaptionJudge::named(const CaptionObject& object) const {
  std::vector<std::string> names;
  for (const auto& [name, sprite] : sprites_) {
    if (name == object.sprite || code_point_of(name) == object.sprite) names.push_back(name);
  }
  if (names.empty()) {
    throw Error(ErrorCode::kIo, "captions: there is no sprite '" + object.sprite + "'");
  }
  return names;
}

// Sprites of other things in the same styles, spread evenly over the sheet.
std::vector<std::string> CaptionJudge::distractors(const std::vector<std::string>& named) const {
  std::vector<std::string> others;
  for (const auto& [name, sprite] : sprites_) {
    const bool same_style = std::ranges::any_of(
        named, [&](const std::string& own) { return style_of(own) == style_of(name); });
    if (same_style && code_point_of(name) != code_point_of(named.front())) others.push_back(name);
  }
  std::vector<std::string> chosen;
  const std::size_t count = std::min<std::size_t>(kDistractors, others.size());
  for (std::size_t i = 0; i < count; ++i) chosen.push_back(others[i * others.size() / count]);
  return chosen;
}

CaptionJudgement CaptionJudge::judge(const Picture& picture, const Caption& caption) const {
  CaptionJudgement judgement;
  judgement.right = true;
  for (const CaptionObject& object : caption.objects) {
    const SearchScene scene(picture, object.size);
    const std::vector<std::string> own = named(object);
    Place place;
    Sprite best;
    for (const std::string& name : own) {
      const Sprite sprite = tinted(sprites_.at(name), object.tint);
      const Place candidate = scene.find(sprite, object);
      if (candidate.score <= place.score) continue;
      place = candidate;
      best = sprite;
    }
    ObjectJudgement found{place.score, 0, false};
    for (const std::string& name : distractors(own)) {
      found.better += scene.fits_better(tinted(sprites_.at(name), object.tint), best, place);
    }
    found.found = found.score >= kMinScore && found.better <= kMaxBetter;
    judgement.right = judgement.right && found.found;
    judgement.objects.push_back(found);
  }
  return judgement;
}

}  // namespace flashomni::cli
