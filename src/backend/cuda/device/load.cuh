// load.cuh -- loads of global memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>  // uint4

namespace flashomni::cuda {

// 4 or 16 bytes, or zeros: under a predicate, where a branch would have its address computed behind
// it, again for every load, and hold up the loads that follow.
__device__ inline float load_float_if(bool valid, const float* address) {
  float value;
  asm volatile(
      "{\n.reg .pred valid;\nsetp.ne.s32 valid, %2, 0;\nmov.b32 %0, 0;\n"
      "@valid ld.global.f32 %0, [%1];\n}"
      : "=&f"(value)
      : "l"(address), "r"(static_cast<int>(valid)));
  return value;
}
__device__ inline uint4 load_if(bool valid, const void* address) {
  uint4 bits;
  asm volatile(
      "{\n.reg .pred valid;\nsetp.ne.s32 valid, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\nmov.b32 %3, 0;\n@valid ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(bits.x), "=&r"(bits.y), "=&r"(bits.z), "=&r"(bits.w)
      : "l"(address), "r"(static_cast<int>(valid)));
  return bits;
}

}  // namespace flashomni::cuda
