// sprite_search.h -- where and how well a sprite fits into a picture.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "caption_judge.h"

namespace flashomni::cli {

struct SpriteSums;

// Averages over areas; width and height > 0.
std::vector<float> resize_area(const std::vector<float>& plane, int width, int height,
                               int new_width, int new_height);
Sprite resize_sprite(const Sprite& sprite, int side);
// As the training pictures were tinted: the colour darkened or lightened by the sprite's grey.
Sprite tint_sprite(const Sprite& sprite, const float (&color)[3]);

// Where a sprite fits best: its top left pixel with the rim, its side without it.
struct Place {
  double score = -1;  // the correlation, in [-1, 1]
  int side = 0, x = 0, y = 0;
};

// A picture reduced so that the object looked for is about kObjectSide pixels high.
class SearchScene {
 public:
  static constexpr int kObjectSide = 28;
  SearchScene(const Picture& picture, double object_size);

  // The best place of `sprite` over positions and sizes around the object's place.
  Place find(const Sprite& sprite, const CaptionObject& object) const;
  // Whether `rival` fits better than `sprite` around the sprite's place, when the pixels of both
  // count: a thin rival cannot win by explaining little.
  bool fits_better(const Sprite& rival, const Sprite& sprite, const Place& place) const;

 private:
  int last_x(int side) const;
  int last_y(int side) const;
  double score_at(const SpriteSums& sprite, int x, int y) const;
  Place find_at_side(const SpriteSums& sprite, const CaptionObject& object) const;
  double best_near(const SpriteSums& sprite, const Place& place) const;

  int width_ = 0, height_ = 0;
  std::vector<float> planes_[3];
};

}  // namespace flashomni::cli
