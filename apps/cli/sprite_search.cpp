#include "sprite_search.h"

#include <algorithm>
#include <cmath>

namespace flashomni::cli {

// What the correlation needs of a sprite, whatever the position. Only pixels of the sprite and of
// a rim around it count (`counts` is 1 there, else 0): what lies further off says nothing about it.
struct SpriteSums {
  int side;                         // of the sprite with its rim
  std::vector<float> colors[3];     // alpha * colour
  std::vector<float> rest, counts;  // rest = counts * (1 - alpha)
  double sum = 0, squares = 0;      // of alpha * colour, all channels
  double rest_sum = 0, rest_squares = 0;
  double mixed[3] = {};  // of alpha * colour * rest, a channel
  double counted = 0;

  // With a rival of the same side, its pixels and rim count too.
  explicit SpriteSums(const Sprite& sprite, const Sprite* rival = nullptr);
};

namespace {

// Sizes to try, as factors on the size that the grammar names, and how far from its place to look.
constexpr double kSizes[] = {0.7, 0.8, 0.9, 1.0, 1.12, 1.25, 1.4};
constexpr double kReach = 0.2;  // of the picture's side
constexpr int kStride = 2;      // of the first pass over positions, pixels
constexpr int kRim = 2;         // pixels around the sprite that count as its background
constexpr int kNear = 2;        // how far rivals are tried around the sprite's place
constexpr float kOpaque = 0.05f;

// 1 where the sprite is opaque within kRim pixels.
std::vector<float> widen(const std::vector<float>& alpha, int side) {
  std::vector<float> wide(alpha.size());
  for (int i = 0; i < side * side; ++i) {
    if (alpha[i] <= kOpaque) continue;
    for (int y = std::max(i / side - kRim, 0); y <= std::min(i / side + kRim, side - 1); ++y) {
      const int left = std::max(i % side - kRim, 0), right = std::min(i % side + kRim, side - 1);
      std::fill_n(wide.begin() + y * side + left, right - left + 1, 1.0f);
    }
  }
  return wide;
}

struct WindowSums {
  float cross = 0, sum = 0, squares = 0;  // with alpha * colour; of the picture
  float rest[3] = {};                     // picture * w, a channel
};

// One channel of the window whose first pixel is `at`, rows `stride` apart.
void add_channel(const float* at, int stride, const SpriteSums& sprite, int channel,
                 WindowSums& sums) {
  float cross = 0, sum = 0, squares = 0, rest = 0;
  for (int y = 0; y < sprite.side; ++y) {
    const float* picture = at + static_cast<std::ptrdiff_t>(y) * stride;
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(y) * sprite.side;
    const float *color = &sprite.colors[channel][row], *w = &sprite.rest[row],
                *counts = &sprite.counts[row];
    for (int x = 0; x < sprite.side; ++x) {
      const float counted = counts[x] * picture[x];
      cross += picture[x] * color[x];
      rest += picture[x] * w[x];
      sum += counted;
      squares += counted * picture[x];
    }
  }
  sums.cross += cross;
  sums.sum += sum;
  sums.squares += squares;
  sums.rest[channel] = rest;
}

// Pearson's correlation of the window with the sprite over the window's own background, which is
// the window's mean where the sprite is transparent.
double correlation(const SpriteSums& sprite, const WindowSums& window) {
  double cross = window.cross, sum = sprite.sum, squares = sprite.squares;
  for (int c = 0; c < 3 && sprite.rest_sum > 1; ++c) {
    const double background = window.rest[c] / sprite.rest_sum;
    cross += background * window.rest[c];
    sum += background * sprite.rest_sum;
    squares += 2 * background * sprite.mixed[c] + background * background * sprite.rest_squares;
  }
  const double n = 3 * sprite.counted;
  const double spread = (window.squares - window.sum * window.sum / n) * (squares - sum * sum / n);
  return spread > 1e-9 ? (cross - window.sum * sum / n) / std::sqrt(spread) : 0;
}

}  // namespace

SpriteSums::SpriteSums(const Sprite& sprite, const Sprite* rival) : side(sprite.width + 2 * kRim) {
  const auto frame = [&](const std::vector<float>& plane) {
    std::vector<float> framed(static_cast<std::size_t>(side) * side);
    for (int y = 0; y < sprite.height; ++y) {
      std::copy_n(plane.begin() + y * sprite.width, sprite.width,
                  framed.begin() + (y + kRim) * side + kRim);
    }
    return framed;
  };
  colors[0] = frame(sprite.red);
  colors[1] = frame(sprite.green);
  colors[2] = frame(sprite.blue);
  rest = frame(sprite.alpha);
  counts = widen(rest, side);
  if (rival) {
    const std::vector<float> more = widen(frame(rival->alpha), side);
    std::ranges::transform(counts, more, counts.begin(),
                           [](float a, float b) { return std::max(a, b); });
  }
  for (std::size_t i = 0; i < rest.size(); ++i) {
    rest[i] = counts[i] * (1 - rest[i]);
    rest_sum += rest[i];
    rest_squares += rest[i] * rest[i];
    counted += counts[i];
    for (int c = 0; c < 3; ++c) {
      colors[c][i] *= counts[i];
      sum += colors[c][i];
      squares += colors[c][i] * colors[c][i];
      mixed[c] += colors[c][i] * rest[i];
    }
  }
}

std::vector<float> resize_area(const std::vector<float>& plane, int width, int height,
                               int new_width, int new_height) {
  const auto along = [](const float* in, int size, int step, int new_size, float* out) {
    const double factor = static_cast<double>(size) / new_size;
    for (int i = 0; i < new_size; ++i) {
      const double from = i * factor, to = (i + 1) * factor;
      double sum = 0;
      for (int k = static_cast<int>(from); k < std::min<int>(size, std::ceil(to - 1e-9)); ++k) {
        sum += in[k * step] * (std::min<double>(to, k + 1) - std::max<double>(from, k));
      }
      out[i * step] = static_cast<float>(sum / factor);
    }
  };
  std::vector<float> tall(static_cast<std::size_t>(new_width) * height),
      row(std::max(width, new_width));
  for (int y = 0; y < height; ++y) {
    along(plane.data() + static_cast<std::ptrdiff_t>(y) * width, width, 1, new_width, row.data());
    std::copy_n(row.begin(), new_width, tall.begin() + static_cast<std::ptrdiff_t>(y) * new_width);
  }
  std::vector<float> out(static_cast<std::size_t>(new_width) * new_height);
  for (int x = 0; x < new_width; ++x) {
    along(tall.data() + x, height, new_width, new_height, out.data() + x);
  }
  return out;
}

Sprite resize_sprite(const Sprite& sprite, int side) {
  const auto plane = [&](const std::vector<float>& values) {
    return resize_area(values, sprite.width, sprite.height, side, side);
  };
  return {
      side, side, plane(sprite.red), plane(sprite.green), plane(sprite.blue), plane(sprite.alpha)};
}

Sprite tint_sprite(const Sprite& sprite, const float (&color)[3]) {
  constexpr float kKept = 0.12f, kMiddle = 0.55f;
  Sprite tinted = sprite;
  std::vector<float>* planes[3] = {&tinted.red, &tinted.green, &tinted.blue};
  for (std::size_t i = 0; i < sprite.alpha.size(); ++i) {
    const float alpha = sprite.alpha[i];
    const float grey = (0.3f * sprite.red[i] + 0.59f * sprite.green[i] + 0.11f * sprite.blue[i]) /
                       std::max(alpha, 1e-3f);
    for (int c = 0; c < 3; ++c) {
      const float full = grey < kMiddle
                             ? color[c] * (grey / kMiddle)
                             : color[c] + (1 - color[c]) * ((grey - kMiddle) / (1 - kMiddle));
      (*planes[c])[i] = (1 - kKept) * alpha * full + kKept * (*planes[c])[i];
    }
  }
  return tinted;
}

SearchScene::SearchScene(const Picture& picture, double object_size) {
  const double scale = kObjectSide / (object_size * std::min(picture.width, picture.height));
  width_ = std::max(1, static_cast<int>(std::lround(picture.width * scale)));
  height_ = std::max(1, static_cast<int>(std::lround(picture.height * scale)));
  std::vector<float> plane(static_cast<std::size_t>(picture.width) * picture.height);
  for (int c = 0; c < 3; ++c) {
    for (std::size_t i = 0; i < plane.size(); ++i) plane[i] = picture.rgb[3 * i + c] / 255.0f;
    planes_[c] = resize_area(plane, picture.width, picture.height, width_, height_);
  }
}

int SearchScene::last_x(int side) const { return width_ - side - 2 * kRim; }
int SearchScene::last_y(int side) const { return height_ - side - 2 * kRim; }

double SearchScene::score_at(const SpriteSums& sprite, int x, int y) const {
  WindowSums window;
  for (int c = 0; c < 3; ++c) {
    const float* at = planes_[c].data() + static_cast<std::ptrdiff_t>(y) * width_ + x;
    add_channel(at, width_, sprite, c, window);
  }
  return correlation(sprite, window);
}

Place SearchScene::find_at_side(const SpriteSums& sprite, const CaptionObject& object) const {
  const int side = sprite.side - 2 * kRim;
  const auto clamp_x = [&](double x) { return std::clamp(static_cast<int>(x), 0, last_x(side)); };
  const auto clamp_y = [&](double y) { return std::clamp(static_cast<int>(y), 0, last_y(side)); };
  const double x = object.x * width_ - sprite.side / 2.0;
  const double y = object.y * height_ - sprite.side / 2.0;
  const int left = object.any_x ? 0 : clamp_x(x - kReach * width_);
  const int right = object.any_x ? last_x(side) : clamp_x(x + kReach * width_);
  const int bottom = clamp_y(y + kReach * height_);
  Place best{-1, side, left, 0};
  const auto try_at = [&](int at_x, int at_y) {
    const double score = score_at(sprite, at_x, at_y);
    if (score > best.score) best = {score, side, at_x, at_y};
  };
  for (int at_y = clamp_y(y - kReach * height_); at_y <= bottom; at_y += kStride) {
    for (int at_x = left; at_x <= right; at_x += kStride) try_at(at_x, at_y);
  }
  const Place near = best;
  for (int i = 0; i < 9; ++i) try_at(clamp_x(near.x + i % 3 - 1), clamp_y(near.y + i / 3 - 1));
  return best;
}

Place SearchScene::find(const Sprite& sprite, const CaptionObject& object) const {
  Place best;
  for (const double size : kSizes) {
    const int side = static_cast<int>(std::lround(size * kObjectSide));
    if (std::min(last_x(side), last_y(side)) < 0) continue;
    const Place place = find_at_side(SpriteSums(resize_sprite(sprite, side)), object);
    if (place.score > best.score) best = place;
  }
  return best;
}

// The middle of the sprite stays within kNear pixels of the middle of the place.
double SearchScene::best_near(const SpriteSums& sprite, const Place& place) const {
  const int side = sprite.side - 2 * kRim, shift = (place.side - side) / 2;
  double best = -1;
  for (int dy = -kNear; dy <= kNear; ++dy) {
    for (int dx = -kNear; dx <= kNear; ++dx) {
      const int x = std::clamp(place.x + shift + dx, 0, last_x(side));
      const int y = std::clamp(place.y + shift + dy, 0, last_y(side));
      best = std::max(best, score_at(sprite, x, y));
    }
  }
  return best;
}

bool SearchScene::fits_better(const Sprite& rival, const Sprite& sprite, const Place& place) const {
  double ours = -1, theirs = -1;
  for (const int side : {place.side - kNear, place.side, place.side + kNear}) {
    if (std::min(last_x(side), last_y(side)) < 0) continue;
    const Sprite a = resize_sprite(sprite, side), b = resize_sprite(rival, side);
    ours = std::max(ours, best_near(SpriteSums(a, &b), place));
    theirs = std::max(theirs, best_near(SpriteSums(b, &a), place));
  }
  return theirs > ours;
}

}  // namespace flashomni::cli
