#include "backend/cpu/attention.h"

#include <algorithm>

#include "core/check.h"

namespace flashomni::cpu {
namespace {

// A tensor [batch, tokens, heads, head_dim] as the kernels read it.
struct HeadTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  index_t batch_stride = 0, token_stride = 0, head_stride = 0;

  explicit HeadTensor(ConstTensorView x)
      : data(x.data),
        dtype(x.dtype),
        batch_stride(x.stride(0)),
        token_stride(x.stride(1)),
        head_stride(x.stride(2)) {}
  const void* at(index_t item, index_t head) const {
    return static_cast<const char*>(data) +
           (item * batch_stride + head * head_stride) * size_in_bytes(dtype);
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

// Where each kv block of each item starts in packed V, and the packed length of a head.
int place_values(const AttentionPlan& plan, int granule, std::vector<int>& starts) {
  const BlockGrid& grid = plan.kv_grid;
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
  return longest;
}

// Packs V of every head, block by block. Returns it as a tensor of packed heads.
HeadTensor pack_all_values(Context& context, const AttentionPlan& plan, ConstTensorView v,
                           const ProductKernels& kernels) {
  const int packed_tokens = place_values(plan, kernels.value_granule, context.packed_starts);
  const HeadTensor from(v);
  const index_t num_heads = v.size(2);
  const int head_dim = static_cast<int>(v.size(3)), num_blocks = plan.kv_grid.num_blocks();
  HeadTensor packed(v);
  packed.head_stride = static_cast<index_t>(packed_tokens) * head_dim;
  packed.batch_stride = num_heads * packed.head_stride;
  packed.token_stride = packed_tokens;
  packed.data = context.packed_values.reserve(static_cast<std::size_t>(
      plan.kv_grid.batch() * packed.batch_stride * size_in_bytes(v.dtype)));
  const index_t num_packs = plan.kv_grid.batch() * num_heads;
  context.pool.parallel_for(num_packs * num_blocks, [&](index_t i, int) {
    const int block = static_cast<int>(i % num_blocks);
    const index_t head = i / num_blocks % num_heads, item = i / num_blocks / num_heads;
    const Block tokens = plan.kv_grid.at(static_cast<int>(item), block);
    if (tokens.count == 0) return;
    const char* values = static_cast<const char*>(from.at(item, head)) +
                         tokens.start * from.token_stride * size_in_bytes(v.dtype);
    kernels.pack_values(values, from.token_stride, tokens.count, head_dim,
                        context.packed_starts[static_cast<std::size_t>(item * num_blocks + block)],
                        packed_tokens, const_cast<void*>(packed.at(item, head)));
  });
  return packed;
}

// The kv blocks of an item as runs: neighbours merged, cut to max_run tokens. A block that does
// not fill its last granule of packed V ends a run.
int make_runs(const AttentionPlan& plan, const AttentionItem& item, const ProductKernels& kernels,
              const int* packed_starts, KvRun* runs) {
  const int max_run = kernels.attention.max_run;
  int count = 0;
  bool open = false;  // the last run ends at a granule
  for (int n = 0; n < item.num_kv; ++n) {
    const int index = plan.kv_blocks[static_cast<std::size_t>(item.first_kv + n)];
    const Block block = plan.kv_grid.at(item.batch, index);
    const int packed = packed_starts ? packed_starts[index] : block.start;
    for (int done = 0; done < block.count;) {
      KvRun* last = count ? &runs[count - 1] : nullptr;
      const bool extend =
          open && last->start + last->count == block.start + done && last->count < max_run;
      if (!extend) runs[count++] = {block.start + done, 0, packed + done};
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
  const ProductKernels& kernels = context.products(q.dtype);
  const HeadTensor queries = as_head_tensor(context, q, kernels.operand, context.operands[0]);
  const HeadTensor keys = as_head_tensor(context, k, kernels.operand, context.operands[1]);
  const HeadTensor values = kernels.pack_values
                                ? pack_all_values(context, plan, v, kernels)
                                : as_head_tensor(context, v, kernels.operand, context.operands[2]);
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
    const int* packed_starts =
        kernels.pack_values ? context.packed_starts.data() + item.batch * num_blocks : nullptr;
    AttentionJob job;
    job.q = queries.at(item.batch, item.head);
    job.k = keys.at(item.batch, item.head / heads_per_kv);
    job.v = values.at(item.batch, item.head / heads_per_kv);
    job.q_stride = queries.token_stride;
    job.k_stride = keys.token_stride;
    job.v_stride = values.token_stride;
    job.head_dim = head_dim;
    job.first_row = rows.start;
    job.num_rows = rows.count;
    job.scale = scale;
    job.runs = runs;
    job.num_runs = make_runs(plan, item, kernels, packed_starts, runs);
    job.out = const_cast<void*>(target.at(item.batch, item.head));
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
