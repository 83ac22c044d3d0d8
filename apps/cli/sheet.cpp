#include "sheet.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_easy_font.h>
#pragma GCC diagnostic pop

namespace flashomni::cli {
namespace {

constexpr int kGap = 4, kStrip = 16, kBaseline = 4;
constexpr std::uint8_t kPaper = 255, kInk = 40;

void fill(Picture& picture, int left, int top, int right, int bottom, std::uint8_t value) {
  left = std::max(left, 0);
  right = std::min(right, picture.width);
  for (int y = std::max(top, 0); y < std::min(bottom, picture.height); ++y) {
    for (int i = 3 * left; i < 3 * right; ++i) picture.rgb[3 * y * picture.width + i] = value;
  }
}

// Letters of stb_easy_font are axis-parallel rectangles of four vertices each.
void write(Picture& picture, int x, int y, std::string text) {
  struct Vertex {
    float x, y, z;
    unsigned char color[4];
  };
  std::vector<Vertex> vertices(4 * 64 * (text.size() + 1));
  const int quads =
      stb_easy_font_print(static_cast<float>(x), static_cast<float>(y), text.data(), nullptr,
                          vertices.data(), static_cast<int>(vertices.size() * sizeof(Vertex)));
  for (int i = 0; i < quads; ++i) {
    const Vertex &first = vertices[4 * i], &opposite = vertices[4 * i + 2];
    fill(picture, static_cast<int>(first.x), static_cast<int>(first.y),
         static_cast<int>(opposite.x), static_cast<int>(opposite.y), kInk);
  }
}

void paste(const Picture& from, Picture& to, int left, int top) {
  for (int y = 0; y < from.height; ++y) {
    std::copy_n(from.rgb.begin() + 3 * y * from.width, 3 * from.width,
                to.rgb.begin() + 3 * ((top + y) * to.width + left));
  }
}

}  // namespace

Picture side_by_side(const std::vector<Panel>& panels) {
  const int width = panels.front().picture->width, height = panels.front().picture->height;
  const int count = static_cast<int>(panels.size());
  Picture sheet{count * width + (count - 1) * kGap, height + kStrip, {}};
  sheet.rgb.assign(static_cast<std::size_t>(3) * sheet.width * sheet.height, kPaper);
  for (int i = 0; i < count; ++i) {
    const int left = i * (width + kGap);
    write(sheet, left + 2, kBaseline, panels[i].caption);
    paste(*panels[i].picture, sheet, left, kStrip);
  }
  return sheet;
}

Picture stack(const std::vector<Picture>& pictures) {
  Picture all{0, kGap * static_cast<int>(pictures.size() - 1), {}};
  for (const Picture& picture : pictures) {
    all.width = std::max(all.width, picture.width);
    all.height += picture.height;
  }
  all.rgb.assign(static_cast<std::size_t>(3) * all.width * all.height, kPaper);
  int top = 0;
  for (const Picture& picture : pictures) {
    paste(picture, all, 0, top);
    top += picture.height + kGap;
  }
  return all;
}

Picture difference(const Picture& a, const Picture& b, int gain) {
  Picture difference{a.width, a.height, std::vector<std::uint8_t>(a.rgb.size())};
  for (std::size_t i = 0; i < a.rgb.size(); ++i) {
    difference.rgb[i] =
        static_cast<std::uint8_t>(std::min(gain * std::abs(a.rgb[i] - b.rgb[i]), 255));
  }
  return difference;
}

}  // namespace flashomni::cli
