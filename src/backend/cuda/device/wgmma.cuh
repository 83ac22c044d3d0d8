// wgmma.cuh -- the warpgroup MMA of Hopper: 64 x kN += 64 x 16 times 16 x kN, fp32 sums.
//
// 128 threads execute each call together; it runs asynchronously until wgmma_wait. Between
// wgmma_fence and the wait no code may touch the accumulators or the A registers.
// Accumulator layout: thread t of the warpgroup holds, for every 8 columns j, d[4j], d[4j + 1] =
// row 16 (t / 32) + (t % 32) / 4, columns 8j + 2 (t % 4) + {0, 1}, and d[4j + 2], d[4j + 3] = the
// same columns 8 rows below. Two neighbouring j, packed to 16 bits, are the A fragment of one k16.
// Source: PTX ISA, wgmma.mma_async; descriptor fields there under "matrix descriptor format".
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashomni::cuda {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Tells the compiler that asynchronous MMAs read or write these registers up to this point.
template <int kCount>
__device__ inline void wgmma_hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ inline void wgmma_hold(std::uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// Descriptor of an operand in 128-byte-swizzled panels (tma.cuh); `address` is 1024-byte aligned.
//   K-major (columns are the summed axis): one instruction stays inside a panel row, the stride is
//     between groups of 8 rows.
//   MN-major (rows are the summed axis): kN columns span kN / 64 panels, `panel_bytes` apart, and
//     the stride is between groups of 8 rows too.
// To step within the operand add bytes >> 4 to the descriptor.
__device__ inline std::uint64_t wgmma_descriptor(const void* address, int panel_bytes = 16) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{1024 >> 4} << 32;
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(address));
  return kSwizzle128 | kEightRows | static_cast<std::uint64_t>(panel_bytes >> 4) << 16 |
         (shared & 0x3ffffu) >> 4;
}

// d = A B^T (+ d if accumulate), with A K-major in shared memory (ss) or in registers (rs), and B
// K-major in shared memory or, with kTransposedB, MN-major. `ss` uses the first kN / 2 registers of
// d. Specialised for the widths in use.
template <typename T, int kN>
struct Wgmma;

// clang-format off
#define FO_F8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                    "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FO_F32(d, i) FO_F8(d, i), FO_F8(d, i + 8), FO_F8(d, i + 16), FO_F8(d, i + 24)
#define FO_R32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FO_R64 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FO_R128 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"

#define FO_WGMMA_SS(T, TYPE, N, COUNT, REGISTERS, A, B, P, ...)                                  \
  template <int kCount>                                                                          \
  __device__ static void ss(float (&d)[kCount], std::uint64_t a, std::uint64_t b,                \
                            int accumulate) {                                                    \
    static_assert(kCount >= COUNT);                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE "\n{" REGISTERS \
                 "}, " A ", " B ", p, 1, 1, 0, 0;\n}"                                            \
                 : __VA_ARGS__ : "l"(a), "l"(b), "r"(accumulate));                               \
  }
#define FO_WGMMA_RS(T, TYPE, N, COUNT, REGISTERS, A, B, P, TRANSPOSED, ...)                       \
  template <bool kTransposedB>                                                                   \
  __device__ static void rs(float (&d)[COUNT], const std::uint32_t* a, std::uint64_t b,          \
                            int accumulate) {                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE "\n{" REGISTERS \
                 "}, {" A "}, " B ", p, 1, 1, " TRANSPOSED ";\n}"                                \
                 : __VA_ARGS__                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),          \
                   "n"(kTransposedB));                                                           \
  }
#define FO_WGMMA(T, TYPE)                                                                        \
  template <>                                                                                    \
  struct Wgmma<T, 64> {                                                                          \
    FO_WGMMA_RS(T, TYPE, 64, 32, FO_R32, "%32, %33, %34, %35", "%36", "%37", "%38",              \
                FO_F32(d, 0))                                                                    \
  };                                                                                             \
  template <>                                                                                    \
  struct Wgmma<T, 128> {                                                                         \
    FO_WGMMA_SS(T, TYPE, 128, 64, FO_R32 ", " FO_R64, "%64", "%65", "%66",                       \
                FO_F32(d, 0), FO_F32(d, 32))                                                     \
    FO_WGMMA_RS(T, TYPE, 128, 64, FO_R32 ", " FO_R64, "%64, %65, %66, %67", "%68", "%69", "%70", \
                FO_F32(d, 0), FO_F32(d, 32))                                                     \
  };                                                                                             \
  template <>                                                                                    \
  struct Wgmma<T, 256> {                                                                         \
    FO_WGMMA_SS(T, TYPE, 256, 128, FO_R32 ", " FO_R64 ", " FO_R128, "%128", "%129", "%130",      \
                FO_F32(d, 0), FO_F32(d, 32), FO_F32(d, 64), FO_F32(d, 96))                       \
  };
FO_WGMMA(__nv_bfloat16, "bf16")
FO_WGMMA(__half, "f16")
#undef FO_WGMMA
#undef FO_WGMMA_RS
#undef FO_WGMMA_SS
#undef FO_R128
#undef FO_R64
#undef FO_R32
#undef FO_F32
#undef FO_F8
// clang-format on

}  // namespace flashomni::cuda
