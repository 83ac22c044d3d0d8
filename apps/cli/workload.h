// workload.h -- made-up operands and masks for `bench` and `selftest`.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "flashomni/backend.h"
#include "flashomni/symbols.h"

namespace flashomni::cli {

// splitmix64: small, and the same numbers with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // [0, 1)
  int below(int limit) { return static_cast<int>(uniform() * limit); }

 private:
  std::uint64_t state_;
};

// Host tensor of values in [-1, 1), rounded to `dtype`.
Tensor random_tensor(const Layout& layout, DType dtype, std::uint64_t seed);
// The same values where `backend` computes.
Tensor upload(Backend& backend, const Tensor& host);
// A host copy in f32.
Tensor download_f32(Backend& backend, const Tensor& tensor);

enum class MaskKind { kSkip, kCache, kMix };
enum class MaskPattern {
  kRandom,     // every block by itself
  kClustered,  // neighbours: cached runs of query blocks, key blocks around the diagonal
  kSkewed,     // some heads and rows keep nearly everything, others nearly nothing
};

struct MaskRequest {
  MaskKind kind = MaskKind::kSkip;
  MaskPattern pattern = MaskPattern::kRandom;
  double sparsity = 0;  // share of the work to leave out; mix leaves 1 - sqrt(1 - s) to each kind
  std::uint64_t seed = 0;
};

// One item of `seq_len` tokens, the first `text_tokens` of them text, which is never left out.
// Every row keeps at least one key block.
SparseSymbols make_symbols(int seq_len, int text_tokens, int block, int num_heads,
                           const MaskRequest& request);

// The largest RelativeError that rounding explains: operands of `dtype`, sums of a few thousand.
double allowed_error(DType dtype);

// |actual - expected| / |expected| in the Euclidean norm, summed over what is added.
class RelativeError {
 public:
  void add(double actual, double expected) {
    difference_ += (actual - expected) * (actual - expected);
    norm_ += expected * expected;
  }
  double value() const;

 private:
  double difference_ = 0, norm_ = 0;
};

}  // namespace flashomni::cli
