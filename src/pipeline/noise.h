// noise.h -- the starting noise of a generation.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace flashomni {

// Fills `out` (at least 16 values) as torch.randn does with a CPU generator of this seed: the same
// random bits, the same order; the values may differ in the last bits with the C library's log, sin
// and cos.
void fill_normal(std::uint64_t seed, std::span<float> out);

}  // namespace flashomni
