// safetensors_format.h -- the format's names of dtypes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "flashomni/tensor.h"

namespace flashomni {

// The first row of a dtype is the name that is written.
inline constexpr std::array<std::pair<std::string_view, DType>, 7> kSafetensorsDtypes = {{
    {"F32", DType::kF32},
    {"BF16", DType::kBF16},
    {"F16", DType::kF16},
    {"U8", DType::kU8},
    {"BOOL", DType::kU8},
    {"I32", DType::kI32},
    {"I64", DType::kI64},
}};

inline std::optional<DType> safetensors_dtype(std::string_view name) {
  for (const auto& [text, dtype] : kSafetensorsDtypes) {
    if (text == name) return dtype;
  }
  return std::nullopt;
}

inline std::string_view safetensors_dtype_name(DType dtype) {
  for (const auto& [text, candidate] : kSafetensorsDtypes) {
    if (candidate == dtype) return text;
  }
  return {};
}

}  // namespace flashomni
