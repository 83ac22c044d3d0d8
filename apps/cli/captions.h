// captions.h -- lists of prompts, and what the pictures of known captions must show.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace flashomni::cli {

// An object that a picture must show; places and sizes are shares of the picture's side.
struct CaptionObject {
  std::string sprite;             // its name in the sprite sheet
  std::string tint;               // a colour's name, or empty
  double x = 0, y = 0, size = 0;  // centre and height that the caption's grammar gives it
  bool any_x = false;             // the caption does not say where from left to right
};

struct Caption {
  std::string text;
  std::vector<CaptionObject> objects;  // empty: nothing is known of what it must show
};

// Text: one prompt a line, '#' begins a comment. JSON: {"captions": [{"text", "objects": [...]}]}
// as models/flux-mini/heldout/captions.json. Throws UsageError naming `option`.
std::vector<Caption> read_captions(const std::filesystem::path& path, const char* option);

}  // namespace flashomni::cli
