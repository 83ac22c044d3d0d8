// radial.cpp -- attention that thins out with distance: a band in every pair of frames, half as
// wide each time the frames' distance doubles.
//
// Frames i and j at distance d = |i - j| (d <= 1: all pairs of tokens), F tokens in a frame:
//   width(d) = decay 2^bits(F) / 2^bits(d), bits(n) = number of binary digits of n
//   tokens at p and p' of their frames see each other if |p - p'| <= max(band, width(d))
//   where 2^bits(F) / 2^bits(d) < band, only every (band / that)-th distance d has any pair at all
// A pair of blocks is used if, of the key tokens that any of its query tokens sees, more than 60 %
// are seen by more than a third of them.
// `band` is the kv block, or F / 8 if that is less. A picture is taken row by row, a row as a
// frame: the source knows videos only. Source: Radial Attention, arXiv:2506.19852, and its code
// (HunyuanVideo variant).
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "policy/image_pairs.h"
#include "policy/policies.h"

namespace flashomni {
namespace {

// An image token by its frame and its position therein.
struct FrameToken {
  int frame, position;
};

class Bands {
 public:
  Bands(int frame_tokens, int block_kv, double decay)
      : frame_tokens_(frame_tokens), band_(std::min(block_kv, frame_tokens / 8)), decay_(decay) {}

  bool sees(const FrameToken& q, const FrameToken& kv) const {
    const int distance = std::abs(q.frame - kv.frame);
    if (distance <= 1) return true;
    const double full = static_cast<double>(1 << digits(frame_tokens_)) / (1 << digits(distance));
    if (full < band_ && distance % static_cast<int>(band_ / full) != 0) return false;
    return std::abs(q.position - kv.position) <= std::max<double>(band_, full * decay_);
  }

 private:
  static int digits(int value) { return std::bit_width(static_cast<unsigned>(value)); }

  int frame_tokens_, band_;
  double decay_;
};

class Radial : public SparsityPolicy {
 public:
  explicit Radial(double decay) : decay_(decay) {}

  std::string_view name() const override { return "radial"; }

  void select(const PolicyContext& context, SparseSymbols& symbols) const override {
    if (context.places.empty()) return;
    const TokenGrid grid = extent(context.places);
    const bool video = grid.frames > 1;
    std::vector<FrameToken> tokens;
    for (const TokenPlace& place : context.places) {
      const int position = video ? place.row * grid.width + place.column : place.column;
      tokens.push_back({video ? place.frame : place.row, position});
    }
    const Bands bands(video ? grid.height * grid.width : grid.width, symbols.kv_grid().block(),
                      decay_);
    keep_image_pairs(symbols, [&](ImageRange q, ImageRange kv) {
      return is_dense_enough(std::span(tokens).subspan(q.first, q.count),
                             std::span(tokens).subspan(kv.first, kv.count), bands);
    });
  }

  std::string limitation(const BlockGrid&, std::span<const TokenPlace> places) const override {
    return unknown_places(name(), places);
  }

 private:
  static bool is_dense_enough(std::span<const FrameToken> q, std::span<const FrameToken> kv,
                              const Bands& bands) {
    int seen = 0, seen_by_many = 0;
    for (const FrameToken& key : kv) {
      const auto count =
          std::ranges::count_if(q, [&](const FrameToken& query) { return bands.sees(query, key); });
      seen += count > 0;
      seen_by_many += 3 * count > std::ssize(q);
    }
    return seen_by_many > .6 * seen;
  }

  double decay_;
};

}  // namespace

PolicyPtr make_radial(const OptionReader& options) {
  return std::make_unique<Radial>(options.number("decay", 0, 1e6).value_or(1));
}

}  // namespace flashomni
