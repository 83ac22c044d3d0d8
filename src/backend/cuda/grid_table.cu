#include "backend/cuda/grid_table.h"

#include <cstring>
#include <vector>

namespace flashomni::cuda {
namespace {

// The kv block of an item that holds a token, or follows it.
int block_holding(const BlockGrid& grid, int item, int token) {
  int index = 0;
  while (index < grid.num_blocks() &&
         grid.at(item, index).start + grid.at(item, index).count <= token) {
    ++index;
  }
  return index;
}

struct HostTable {
  std::vector<int4> blocks;
  std::vector<int> text;
  std::vector<int2> counts;

  HostTable(const BlockGrid& grid, const BlockGrid& kv_grid)
      : text(static_cast<std::size_t>(grid.batch()) * grid.num_blocks()) {
    for (int item = 0; item < grid.batch(); ++item) {
      int2 count{0, 0};
      for (int index = 0; index < grid.num_blocks(); ++index) {
        const Block block = grid.at(item, index);
        const bool is_text = grid.is_text(item, index);
        blocks.push_back(
            {block.start, block.count, is_text, block_holding(kv_grid, item, block.start)});
        if (block.count == 0) continue;
        ++count.x;
        if (is_text) text[item * grid.num_blocks() + count.y++] = index;
      }
      counts.push_back(count);
    }
  }
};

// Lays arrays out one after another.
class Packer {
 public:
  template <typename T>
  std::size_t add(const std::vector<T>& values) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return at;
  }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

struct Offsets {
  std::size_t blocks, text, counts;
};

Offsets add(const HostTable& table, Packer& packer) {
  return {packer.add(table.blocks), packer.add(table.text), packer.add(table.counts)};
}

GridTable locate(const Offsets& offsets, const char* base, int num_blocks) {
  return {reinterpret_cast<const int4*>(base + offsets.blocks),
          reinterpret_cast<const int*>(base + offsets.text),
          reinterpret_cast<const int2*>(base + offsets.counts), num_blocks};
}

}  // namespace

void GridTables::assign(const BlockGrid& q_grid, const BlockGrid& kv_grid, cudaStream_t stream) {
  if (q_table_.counts && q_grid == q_grid_ && kv_grid == kv_grid_) return;
  Packer packer;
  const Offsets q = add(HostTable(q_grid, kv_grid), packer);
  const Offsets kv = add(HostTable(kv_grid, kv_grid), packer);
  memory_.reserve(packer.bytes().size());
  FO_CUDA(cudaMemcpyAsync(memory_.as<char>(), packer.bytes().data(), packer.bytes().size(),
                          cudaMemcpyHostToDevice, stream));
  q_table_ = locate(q, memory_.as<char>(), q_grid.num_blocks());
  kv_table_ = locate(kv, memory_.as<char>(), kv_grid.num_blocks());
  q_grid_ = q_grid;
  kv_grid_ = kv_grid;
}

}  // namespace flashomni::cuda
