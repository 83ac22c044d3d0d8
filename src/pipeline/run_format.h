// run_format.h -- names of the file format of docs/record.md, shared by its writer and reader.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace flashomni::run_format {

inline constexpr const char* kFormat = "flashomni-run";
inline constexpr const char* kVersion = "1";

inline constexpr const char* kStepKind = "step.kind";
inline constexpr const char* kStepSeconds = "step.seconds";
inline constexpr const char* kLayerAction = "layer.action";
inline constexpr const char* kLayerSymbols = "layer.symbols";
inline constexpr const char* kLayerSeconds = "layer.seconds";
inline constexpr const char* kLayerMacs = "layer.macs";
inline constexpr const char* kLayerDensity = "layer.density";
inline constexpr const char* kSymbolsCache = "symbols.cache";
inline constexpr const char* kSymbolsSkip = "symbols.skip";
inline constexpr const char* kTokenOrder = "tokens.order";
inline constexpr const char* kPicture = "picture.png";
inline constexpr const char* kDensePicture = "dense.picture.png";
inline constexpr const char* kDenseStepSeconds = "dense.step.seconds";

}  // namespace flashomni::run_format
