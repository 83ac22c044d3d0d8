#include "backend/cpu/attention.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace flashomni::cpu {
namespace {

// A tensor [batch, tokens, heads, head_dim] as the kernels read or write it.
struct HeadTensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  index_t batch_stride = 0, token_stride = 0, head_stride = 0;

  HeadTensor() = default;
  explicit HeadTensor(ConstTensorView x)
      : data(const_cast<void*>(x.data)),
        dtype(x.dtype),
        batch_stride(x.stride(0)),
        token_stride(x.stride(1)),
        head_stride(x.stride(2)) {}
  void* at(index_t item, index_t head, index_t token = 0) const {
    return static_cast<char*>(data) +
           (item * batch_stride + head * head_stride + token * token_stride) * size_in_bytes(dtype);
  }
};

// `x` in place if the kernels multiply its dtype, else widened to f32 in `scratch`.
HeadTensor as_head_tensor(Context& context, ConstTensorView x, DType operand, Scratch& scratch) {
  HeadTensor heads(x);
  if (x.dtype == operand) return heads;
  const index_t tokens = x.size(1), num_heads = x.size(2), head_dim = x.size(3);
  float* copy = static_cast<float*>(scratch.reserve(
      static_cast<std::size_t>(x.size(0) * tokens * num_heads * head_dim) * sizeof(float)));
  context.pool.parallel_for(x.size(0) * tokens, [&](index_t i, int) {
    const index_t offset = i / tokens * x.stride(0) + i % tokens * x.stride(1);
    for (index_t head = 0; head < num_heads; ++head) {
      const char* from =
          static_cast<const char*>(x.data) + (offset + head * x.stride(2)) * size_in_bytes(x.dtype);
      context.rows->widen(from, x.dtype, copy + (i * num_heads + head) * head_dim, head_dim);
    }
  });
  heads.data = copy;
  heads.dtype = DType::kF32;
  heads.head_stride = head_dim;
  heads.token_stride = num_heads * head_dim;
  heads.batch_stride = tokens * heads.token_stride;
  return heads;
}

// Where each kv block of each item starts in a packed head, and the packed tokens of a head: an odd
// number of granules, so that rows of V^T begin in different sets of the L1 cache.
int place_blocks(const BlockGrid& grid, int granule, std::vector<int>& starts) {
  starts.clear();
  int longest = 0;
  for (int item = 0; item < grid.batch(); ++item) {
    int end = 0;
    for (int block = 0; block < grid.num_blocks(); ++block) {
      starts.push_back(end);
      end += (grid.at(item, block).count + granule - 1) / granule * granule;
    }
    longest = std::max(longest, end);
  }
  return longest / granule % 2 == 0 ? longest + granule : longest;
}

// K and V as the kernels of a call read them: packed, or where they lie.
//
// Packed are the kv blocks that some row attends to, head by head and block after block. Where they
// lie, rows of a head are num_heads * head_dim apart: they share few sets of the L2 cache, so that
// a head that would fit is fetched from L3 for every query block. A block that few query blocks
// attend to is not worth the copy.
class KeysValues {
 public:
  KeysValues(Context& context, const AttentionPlan& plan, const ProductKernels& kernels,
             ConstTensorView k, ConstTensorView v)
      : context_(context),
        kernels_(kernels),
        grid_(plan.kv_grid),
        num_heads_(k.size(2)),
        head_dim_(static_cast<int>(k.size(3))),
        keys_(k),
        values_(v) {
    const index_t num_used = mark_used(plan);
    const bool readable = !kernels.pack_values && k.dtype == kernels.operand;
    const auto num_reads = static_cast<index_t>(plan.kv_blocks.size());
    if (readable && num_reads < kMinReads * num_used) {
      place_in_order();
    } else {
      pack_used();
    }
  }

  const HeadTensor& keys() const { return keys_; }
  const HeadTensor& values() const { return values_; }
  int packed_tokens() const { return tokens_; }
  // Where each kv block of an item begins, in tokens.
  const int* starts(index_t item) const {
    return context_.kv_starts.data() + item * grid_.num_blocks();
  }

 private:
  // Query blocks that attend to a used kv block, on average, from which on packing pays.
  static constexpr index_t kMinReads = 12;

  // Returns how many blocks are used.
  index_t mark_used(const AttentionPlan& plan) {
    const index_t heads_per_kv = plan.num_heads / num_heads_, blocks = grid_.num_blocks();
    std::vector<char>& used = context_.used_blocks;
    used.assign(static_cast<std::size_t>(grid_.batch() * num_heads_ * blocks), 0);
    for (const AttentionItem& item : plan.items) {
      char* row = used.data() + (item.batch * num_heads_ + item.head / heads_per_kv) * blocks;
      const std::int32_t* kv = plan.kv_blocks.data() + item.first_kv;
      for (int n = 0; n < item.num_kv; ++n) row[kv[n]] = 1;
    }
    return std::ranges::count(used, 1);
  }

  bool is_used(index_t item, index_t head, int block) const {
    const index_t i = (item * num_heads_ + head) * grid_.num_blocks() + block;
    return context_.used_blocks[static_cast<std::size_t>(i)] != 0;
  }

  void place_in_order() {
    context_.kv_starts.clear();
    for (int item = 0; item < grid_.batch(); ++item) {
      for (int block = 0; block < grid_.num_blocks(); ++block) {
        context_.kv_starts.push_back(grid_.at(item, block).start);
      }
    }
  }

  void pack_used() {
    tokens_ = place_blocks(grid_, kernels_.value_granule, context_.kv_starts);
    const HeadTensor from_k = keys_, from_v = values_;
    keys_ = packed_tensor(context_.packed_keys);
    values_ = packed_tensor(context_.packed_values);
    const index_t blocks = grid_.num_blocks();
    context_.pool.parallel_for(grid_.batch() * blocks, [&](index_t i, int) {
      pack(from_k, from_v, i / blocks, static_cast<int>(i % blocks));
    });
  }

  // [batch, head, token, head_dim] in `memory`.
  HeadTensor packed_tensor(Scratch& memory) const {
    HeadTensor packed;
    packed.dtype = kernels_.operand;
    packed.token_stride = head_dim_;
    packed.head_stride = index_t{tokens_} * head_dim_;
    packed.batch_stride = num_heads_ * packed.head_stride;
    packed.data = memory.reserve(static_cast<std::size_t>(grid_.batch() * packed.batch_stride *
                                                          size_in_bytes(packed.dtype)));
    return packed;
  }

  void pack(const HeadTensor& k, const HeadTensor& v, index_t item, int block) const {
    const Block tokens = grid_.at(static_cast<int>(item), block);
    copy_rows(k, item, block, tokens, keys_);
    if (!kernels_.pack_values) {
      copy_rows(v, item, block, tokens, values_);
      return;
    }
    for (index_t head = 0; head < num_heads_; ++head) {
      if (!is_used(item, head, block)) continue;
      kernels_.pack_values(v.at(item, head, tokens.start), v.token_stride, tokens.count, head_dim_,
                           starts(item)[block], tokens_, values_.at(item, head));
    }
  }

  // Token by token, so that memory is read in order.
  void copy_rows(const HeadTensor& x, index_t item, int block, Block tokens,
                 const HeadTensor& packed) const {
    for (int i = 0; i < tokens.count; ++i) {
      for (index_t head = 0; head < num_heads_; ++head) {
        if (!is_used(item, head, block)) continue;
        const void* from = x.at(item, head, tokens.start + i);
        void* to = packed.at(item, head, starts(item)[block] + i);
        if (x.dtype == kernels_.operand) {
          std::memcpy(to, from, static_cast<std::size_t>(head_dim_ * size_in_bytes(x.dtype)));
        } else {
          context_.rows->widen(from, x.dtype, static_cast<float*>(to), head_dim_);
        }
      }
    }
  }

  Context& context_;
  const ProductKernels& kernels_;
  const BlockGrid& grid_;
  const index_t num_heads_;
  const int head_dim_;
  int tokens_ = 0;
  HeadTensor keys_, values_;
};

// The kv blocks of an item as runs of tokens: neighbours merged, cut to max_run tokens. A
// block that does not fill its last granule ends a run.
int make_runs(const AttentionPlan& plan, const AttentionItem& item, const ProductKernels& kernels,
              const int* starts, KvRun* runs) {
  const int max_run = kernels.attention.max_run;
  int count = 0;
  bool open = false;  // the last run ends at a granule
  for (int n = 0; n < item.num_kv; ++n) {
    const int index = plan.kv_blocks[static_cast<std::size_t>(item.first_kv + n)];
    const Block block = plan.kv_grid.at(item.batch, index);
    for (int done = 0; done < block.count;) {
      const int start = starts[index] + done;
      KvRun* last = count ? &runs[count - 1] : nullptr;
      const bool extend = open && last->start + last->count == start && last->count < max_run;
      if (!extend) runs[count++] = {start, 0};
      last = &runs[count - 1];
      const int taken = std::min(block.count - done, max_run - last->count);
      last->count += taken;
      done += taken;
      open = last->count % kernels.value_granule == 0;
    }
  }
  return count;
}

}  // namespace

void attention(Context& context, const AttentionPlan& plan, ConstTensorView q, ConstTensorView k,
               ConstTensorView v, float scale, TensorView out, TensorView lse) {
  if (q.size(3) % 8 != 0) {
    FO_FAIL(kUnsupported, "attention: head_dim is %lld, the cpu backend takes multiples of 8",
            static_cast<long long>(q.size(3)));
  }
  if (plan.items.empty()) return;
  const ProductKernels& kernels = context.products(q.dtype);
  const HeadTensor queries = as_head_tensor(context, q, kernels.operand, context.operands[0]);
  const KeysValues keys_values(context, plan, kernels, k, v);
  const HeadTensor target(out);
  const int head_dim = static_cast<int>(q.size(3));
  const int heads_per_kv = static_cast<int>(q.size(2) / k.size(2));
  const int num_blocks = plan.kv_grid.num_blocks();

  // A worker's memory: the kernel's, then the runs of the item.
  const std::size_t kernel_bytes = (kernels.attention.scratch_bytes(head_dim) + 63) / 64 * 64;
  const std::size_t max_runs = static_cast<std::size_t>(
      num_blocks + plan.kv_grid.num_tokens() / kernels.attention.max_run + 1);
  context.worker_scratch.reserve(kernel_bytes + max_runs * sizeof(KvRun));

  context.pool.parallel_for(static_cast<index_t>(plan.items.size()), [&](index_t i, int worker) {
    const AttentionItem& item = plan.items[static_cast<std::size_t>(i)];
    const Block rows = plan.q_grid.at(item.batch, item.q_block);
    char* scratch = static_cast<char*>(context.worker_scratch.of(worker));
    KvRun* runs = reinterpret_cast<KvRun*>(scratch + kernel_bytes);
    AttentionJob job;
    job.q = queries.at(item.batch, item.head);
    job.q_stride = queries.token_stride;
    job.k = keys_values.keys().at(item.batch, item.head / heads_per_kv);
    job.v = keys_values.values().at(item.batch, item.head / heads_per_kv);
    job.k_stride = keys_values.keys().token_stride;
    job.v_stride = keys_values.values().token_stride;
    job.packed_tokens = keys_values.packed_tokens();
    job.head_dim = head_dim;
    job.first_row = rows.start;
    job.num_rows = rows.count;
    job.scale = scale;
    job.runs = runs;
    job.num_runs = make_runs(plan, item, kernels, keys_values.starts(item.batch), runs);
    job.out = target.at(item.batch, item.head);
    job.out_stride = target.token_stride;
    job.out_dtype = out.dtype;
    if (lse) {
      job.lse = lse.as<float>() + item.batch * lse.stride(0) + item.head * lse.stride(1);
    }
    job.scratch = scratch;
    kernels.attention.run(job);
  });
}

}  // namespace flashomni::cpu
