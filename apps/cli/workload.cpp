#include "workload.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace flashomni::cli {
namespace {

// How many of `count` things to keep where a share `dropped` goes, one at least.
int kept_of(int count, double dropped) {
  return std::clamp(static_cast<int>(std::lround(count * (1 - dropped))), 1, count);
}

// Marks for `count` things in a row: 1 = keep. `centre` is where a cluster lies, `rank` in [0, 1)
// decides what a skewed row is like.
std::vector<std::uint8_t> draw_marks(int count, double dropped, MaskPattern pattern, int centre,
                                     double rank, Random& random) {
  std::vector<std::uint8_t> marks(static_cast<std::size_t>(count), 0);
  if (pattern == MaskPattern::kRandom) {
    for (std::uint8_t& mark : marks) mark = random.uniform() >= dropped;
  } else if (pattern == MaskPattern::kClustered) {
    const int kept = kept_of(count, dropped);
    const int first = std::clamp(centre - kept / 2, 0, count - kept);
    std::fill_n(marks.begin() + first, kept, std::uint8_t{1});
  } else {
    std::fill(marks.begin(), marks.end(), rank >= dropped);
  }
  if (std::ranges::count(marks, 1) == 0) marks[random.below(count)] = 1;
  return marks;
}

}  // namespace

std::uint64_t Random::bits() {
  std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

Tensor random_tensor(const Layout& layout, DType dtype, std::uint64_t seed) {
  Tensor values = Tensor::host(DType::kF32, layout);
  Random random(seed);
  for (index_t i = 0; i < values.num_elements(); ++i) {
    values.as<float>()[i] = static_cast<float>(2 * random.uniform() - 1);
  }
  return dtype == DType::kF32 ? std::move(values) : convert(values, dtype);
}

Tensor upload(Backend& backend, const Tensor& host) {
  Tensor device = backend.allocate(host.dtype(), host.view().layout);
  backend.copy(host, device, {});
  backend.synchronize({});
  return device;
}

Tensor download_f32(Backend& backend, const Tensor& tensor) {
  Tensor host = Tensor::host(tensor.dtype(), tensor.view().layout);
  backend.copy(tensor, host, {});
  backend.synchronize({});
  return convert(host, DType::kF32);
}

SparseSymbols make_symbols(int seq_len, int text_tokens, int block, int num_heads,
                           const MaskRequest& request) {
  const auto segments = make_segments(seq_len, text_tokens,
                                      text_tokens > 0 ? TextPosition::kFirst : TextPosition::kNone);
  const BlockGrid grid(block, /*batch=*/1, segments);
  SparseSymbols symbols(grid, grid, num_heads);
  const bool caches = request.kind != MaskKind::kSkip, skips = request.kind != MaskKind::kCache;
  const double share =
      request.kind == MaskKind::kMix ? 1 - std::sqrt(1 - request.sparsity) : request.sparsity;
  const int blocks = grid.num_blocks();
  Random random(request.seed);
  for (int head = 0; head < num_heads; ++head) {
    const auto live = draw_marks(blocks, caches ? share : 0, request.pattern, random.below(blocks),
                                 (head + 0.5) / num_heads, random);
    for (int q_block = 0; q_block < blocks; ++q_block) {
      if (grid.is_text(0, q_block)) continue;
      if (!live[q_block]) symbols.cache(0, head, q_block);
      auto used =
          draw_marks(blocks, skips ? share : 0, request.pattern, q_block, random.uniform(), random);
      for (int b = 0; b < blocks; ++b) used[b] |= grid.is_text(0, b);
      symbols.set_skip_row(0, head, q_block, used);
    }
  }
  return symbols;
}

double allowed_error(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 2e-2;
    case DType::kF16: return 4e-3;
    default: return 2e-5;
  }
}

double RelativeError::value() const {
  return norm_ > 0 ? std::sqrt(difference_ / norm_) : std::sqrt(difference_);
}

}  // namespace flashomni::cli
