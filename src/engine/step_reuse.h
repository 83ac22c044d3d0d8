// step_reuse.h -- a whole forward pass reused while its first layer says that little changed.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "flashomni/backend.h"

namespace flashomni {

// First-block caching of one branch. With h0, h1 and hL the hidden states before layer 0, after it
// and at the end: `residual` is h1 - h0 and `rest` is hL - h1, both of the last pass that was
// computed to the end.
class StepReuse {
 public:
  void enter(Backend& backend, ConstTensorView hidden);  // h0
  // Of this pass's residual against the last one's, sum |difference| / sum |last|; infinite if no
  // pass was computed to the end.
  double change(Backend& backend, TensorView hidden);  // h1
  void add_rest(Backend& backend, TensorView hidden);  // h1 becomes h1 + rest
  // This pass is computed to the end: its residual and its rest are the last ones from now on.
  void keep(Backend& backend, TensorView hidden);   // h1
  void leave(Backend& backend, TensorView hidden);  // hL

 private:
  void reserve(Backend& backend, const Layout& layout);

  bool has_rest_ = false;
  Tensor entry_, after_first_, residual_, rest_;
  Tensor host_now_, host_last_;
};

}  // namespace flashomni
