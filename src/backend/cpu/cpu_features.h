// cpu_features.h -- what this processor and kernel let us run.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::cpu {

bool has_avx2();    // with FMA and F16C
bool has_avx512();  // F, VL, DQ, BW
bool has_avx512_bf16();
// Whether vdpbf16ps does twice the work of an f32 FMA: on AMD since Zen 4, not on Intel, which
// issues it at half the rate (measured: docs/kernels/cpu.md).
bool avx512_bf16_is_fast();
// Asks the kernel for the use of AMX tiles by this process (Linux grants it once and for all).
bool enable_amx_bf16();

}  // namespace flashomni::cpu
