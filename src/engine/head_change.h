// head_change.h -- how much each head's attention output moves from update to update.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "flashomni/backend.h"

namespace flashomni {

// Of one layer of one branch. Keeps a host copy of the output at the last update.
class HeadChange {
 public:
  // `o` [1, seq_len, num_heads, head_dim] at this update, `steps` after the last one. Returns, per
  // head, the L2 norm of the difference over that of `o` and over `steps`; empty at the first call.
  const std::vector<float>& measure(Backend& backend, ConstTensorView o, int steps);

 private:
  Tensor now_, last_;
  std::vector<float> change_;
};

}  // namespace flashomni
