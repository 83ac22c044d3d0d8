// simd_targets.h -- include before any Highway header in simd_*.cpp.
// SPDX-License-Identifier: Apache-2.0
#pragma once

// SSSE3 and SSE4 would be built for machines that nobody runs this on; AVX3_DL has nothing that
// these kernels use.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
