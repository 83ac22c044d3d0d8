// caption_judge.h -- does a picture show the objects that its caption names?
//
// Each object is looked for around the place that the caption's grammar gives it, at several
// sizes, by the normalised correlation of its sprite (over the background found there) with the
// picture. It is there if the correlation is high enough and few of 20 other sprites of the same
// style and tint fit better where it was found. Nothing is said of the background, of further
// objects or of a style that the caption does not name. How often it errs: docs/quality.md.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "captions.h"
#include "flashomni/pipeline.h"  // Picture

namespace flashomni::cli {

// Premultiplied colours and alpha as floats in [0, 1], [height, width] each.
struct Sprite {
  int width = 0, height = 0;
  std::vector<float> red, green, blue, alpha;
};

struct ObjectJudgement {
  double score = 0;  // the best correlation of the object itself
  int better = 0;    // distractors that correlate better
  bool found = false;
};

struct CaptionJudgement {
  std::vector<ObjectJudgement> objects;
  bool right = false;  // every object found
};

class CaptionJudge {
 public:
  static constexpr int kDistractors = 20;
  static constexpr int kMaxBetter = 1;  // a near twin may be among the distractors

  // sprites.png and the list "sprites" of captions.json in `folder`. Throws Error(kIo).
  explicit CaptionJudge(const std::filesystem::path& folder);

  CaptionJudgement judge(const Picture& picture, const Caption& caption) const;

 private:
  std::vector<std::string> named(const CaptionObject& object) const;
  std::vector<std::string> distractors(const std::vector<std::string>& named) const;

  std::map<std::string, Sprite> sprites_;
};

}  // namespace flashomni::cli
