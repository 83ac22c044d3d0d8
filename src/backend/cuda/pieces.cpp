#include "backend/cuda/pieces.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace flashomni::cuda {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Tiles [first, first + count) of an item, in the units that can be cut.
struct Part {
  std::size_t item = 0;
  int first = 0, count = 0;
  std::int16_t number = 0;  // among the parts of its item
  int sm = 0;
};

// What an item falls into: units of one tile, or of one kv block where that is longer.
struct Units {
  int blocks;  // kv blocks a unit
  int tiles;   // tiles a unit
  explicit Units(int block_kv)
      : blocks(std::max(1, kAttentionTileKv / block_kv)),
        tiles(std::max(1, block_kv / kAttentionTileKv)) {}
  int of(const AttentionItem& item) const {
    return static_cast<int>(divide_up(item.num_kv, blocks));
  }
};

// Hands each item to the multiprocessor that is free first, and cuts those that would keep it busy
// past the time at which all could end together. Times are in tiles.
class Schedule {
 public:
  Schedule(const AttentionPlan& plan, const CutOptions& options)
      : plan_(plan),
        options_(options),
        units_(plan.kv_grid.block()),
        smallest_(static_cast<int>(divide_up(options.smallest_part, units_.tiles))) {
    for (int i = 0; i < options.num_sms; ++i) free_.push({0, i});
    std::int64_t work = 0;
    for (const AttentionItem& item : plan.items) work += cost(units_.of(item));
    end_ = divide_up(work, options.num_sms) + options.piece_cost + options.smallest_part / 2;
  }

  std::vector<Part> run() {
    std::vector<Part> rests;
    for (const std::size_t i : order()) place({i, 0, units_.of(plan_.items[i])}, rests);
    while (!rests.empty()) {
      std::vector<Part> now;
      now.swap(rests);
      std::ranges::stable_sort(now, std::greater{}, &Part::count);
      for (const Part& rest : now) place(rest, rests);
    }
    std::ranges::stable_sort(parts_, std::less{}, &Part::sm);
    return std::move(parts_);
  }

 private:
  std::int64_t cost(std::int64_t units) const { return units * units_.tiles + options_.piece_cost; }

  // The plan's, but the last ones, of whatever head, longest first.
  std::vector<std::size_t> order() const {
    std::vector<std::size_t> order(plan_.items.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto sorted = std::min<std::ptrdiff_t>(
        static_cast<std::ptrdiff_t>(options_.sorted_per_sm) * options_.num_sms, std::ssize(order));
    std::stable_sort(order.end() - sorted, order.end(), [this](std::size_t a, std::size_t b) {
      return plan_.items[a].num_kv > plan_.items[b].num_kv;
    });
    return order;
  }

  void place(Part part, std::vector<Part>& rests) {
    const auto [start, sm] = free_.top();
    free_.pop();
    part.sm = sm;
    const auto room = static_cast<int>((end_ - start - options_.piece_cost) / units_.tiles);
    const int even = static_cast<int>(divide_up(part.count, options_.most_parts - part.number));
    const int fitting = std::max({room, even, smallest_});
    if (part.count > fitting && part.count >= 2 * smallest_ && num_cuts_ < options_.num_sms) {
      ++num_cuts_;
      const int taken = std::min(fitting, part.count - smallest_);
      rests.push_back({part.item, part.first + taken, part.count - taken,
                       static_cast<std::int16_t>(part.number + 1)});
      part.count = taken;
    }
    free_.push({start + cost(part.count), sm});
    parts_.push_back(part);
  }

  const AttentionPlan& plan_;
  const CutOptions& options_;
  const Units units_;
  const int smallest_;  // part, in units
  std::int64_t end_ = 0;
  int num_cuts_ = 0;
  using Free = std::pair<std::int64_t, int>;  // from when on, which multiprocessor
  std::priority_queue<Free, std::vector<Free>, std::greater<>> free_;
  std::vector<Part> parts_;
};

AttentionPiece piece_of(const AttentionPlan& plan, const Part& part, const Units& units) {
  const AttentionItem& item = plan.items[part.item];
  const Block rows = plan.q_grid.at(item.batch, item.q_block);
  const int begin = part.first * units.blocks;
  const int end = std::min(item.num_kv, (part.first + part.count) * units.blocks);
  int last_tokens = 0;
  if (end > begin) {
    last_tokens = plan.kv_grid.at(item.batch, plan.kv_blocks[item.first_kv + end - 1]).count;
  }
  return {item.batch,  item.head,   rows.start, rows.count, item.first_kv + begin,
          end - begin, last_tokens, 0,          1,          0};
}

// Of a piece's first tile, as the kernel finds those of the others: one a kv block, or the first
// rows of a longer block.
void first_groups(const AttentionPlan& plan, const AttentionPiece& piece, int count,
                  AttentionGroup* groups) {
  for (int i = 0; i < count; ++i) {
    groups[i] = {kNoRow, 0};
    const int last = piece.num_kv - 1;
    if (i > last || (i == last && piece.last_kv_tokens == 0)) continue;
    const Block tokens = plan.kv_grid.at(piece.batch, plan.kv_blocks[piece.first_kv + i]);
    groups[i] = {tokens.start, std::min(tokens.count, kAttentionTileKv)};
  }
}

}  // namespace

void cut_into_pieces(const AttentionPlan& plan, const CutOptions& options, Pieces& pieces) {
  pieces.list.clear();
  pieces.num_slots = 0;
  const Units units(plan.kv_grid.block());
  const std::vector<Part> parts = Schedule(plan, options).run();
  pieces.first_of_sm.assign(options.num_sms + 1, 0);
  for (const Part& part : parts) ++pieces.first_of_sm[part.sm + 1];
  for (int sm = 0; sm < options.num_sms; ++sm) {
    pieces.first_of_sm[sm + 1] += pieces.first_of_sm[sm];
  }
  std::vector<std::int16_t> parts_of(plan.items.size(), 0);
  for (const Part& part : parts) ++parts_of[part.item];
  std::vector<std::int32_t> slot_of(plan.items.size(), 0);
  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    slot_of[i] = pieces.num_slots;
    if (parts_of[i] > 1) pieces.num_slots += parts_of[i];
  }
  for (const Part& part : parts) {
    AttentionPiece piece = piece_of(plan, part, units);
    piece.part = part.number;
    piece.num_parts = parts_of[part.item];
    piece.slot = piece.num_parts > 1 ? slot_of[part.item] : 0;
    pieces.list.push_back(piece);
  }
  pieces.starts.assign(options.num_sms, {});
  for (int sm = 0; sm < options.num_sms; ++sm) {
    AttentionStart& start = pieces.starts[sm];
    start.first = pieces.first_of_sm[sm];
    start.end = pieces.first_of_sm[sm + 1];
    if (start.first == start.end) continue;
    start.piece = pieces.list[start.first];
    first_groups(plan, start.piece, units.blocks, start.groups);
  }
}

}  // namespace flashomni::cuda
