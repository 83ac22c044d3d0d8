// avx512_bf16.h -- what the AMX kernels take from the AVX512_BF16 ones.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend/cpu/kernels.h"

namespace flashomni::cpu {

// The rows of `job` from `first_row` on, by vdpbf16ps.
void avx512_bf16_panel_rows(const PanelJob& job, int first_row);

}  // namespace flashomni::cpu
