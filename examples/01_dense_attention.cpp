// 01_dense_attention.cpp -- one attention layer on a backend, everything computed.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "flashomni/attention.h"
#include "flashomni/backend.h"

using namespace flashomni;

int main() {
  const auto backend = make_backend("auto");
  constexpr int kTokens = 200, kHeads = 4, kHeadDim = 64;
  const Layout layout{1, kTokens, kHeads, kHeadDim};  // [batch, seq_len, num_heads, head_dim]

  // Host tensors go straight to a CPU backend; for a GPU: backend->allocate() and copy().
  Tensor q = Tensor::host(DType::kF32, layout), k = Tensor::host(DType::kF32, layout),
         v = Tensor::host(DType::kF32, layout), out = Tensor::host(DType::kF32, layout);
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (Tensor* tensor : {&q, &k, &v}) {
    std::generate_n(tensor->as<float>(), tensor->num_elements(), [&] { return normal(random); });
  }

  // Symbols start all live, and a plan of all-live symbols is dense attention.
  const BlockGrid grid(/*block=*/64, /*batch=*/1, make_segments(kTokens, 0, TextPosition::kNone));
  AttentionPlan plan;
  backend->build_attention_plan(SparseSymbols(grid, grid, kHeads), plan, {});
  const float scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
  attention(*backend, plan, q, k, v, scale, out);

  std::printf("%s: out[0, 0, 0, :3] = %.4f %.4f %.4f\n", backend->description().c_str(),
              out.as<float>()[0], out.as<float>()[1], out.as<float>()[2]);
}
