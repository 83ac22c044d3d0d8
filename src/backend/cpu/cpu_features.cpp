#include "backend/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstring>

namespace flashomni::cpu {

#if defined(__x86_64__)

// __builtin_cpu_supports also asks the operating system (XGETBV) for the vector registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

bool avx512_bf16_is_fast() {
  unsigned highest = 0;
  char vendor[12];
  unsigned words[3];
  __get_cpuid(0, &highest, &words[0], &words[2], &words[1]);
  std::memcpy(vendor, words, sizeof vendor);
  return has_avx512_bf16() && std::memcmp(vendor, "AuthenticAMD", sizeof vendor) == 0;
}

bool enable_amx_bf16() {
#ifdef __linux__
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_tiles = d >> 24 & 1, has_bf16 = d >> 22 & 1;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return has_tiles && has_bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool avx512_bf16_is_fast() { return false; }
bool enable_amx_bf16() { return false; }

#endif

}  // namespace flashomni::cpu
