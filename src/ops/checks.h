// checks.h -- what every checked operator asks of its tensors, one function a kind of mistake.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "flashomni/tensor.h"

namespace flashomni {

// A tensor argument and what the operator's contract demands of it.
struct Argument {
  const char* name;
  ConstTensorView tensor;
  DType dtype = DType::kF32;
  Layout shape{};  // sizes only; strides are free except for the last
};

// All functions throw Error(kInvalidArgument) in the form "attention: k is f32, expected bf16".
void check_present(const char* op, const char* name, ConstTensorView tensor, int rank);
void check_float(const char* op, const char* name, ConstTensorView tensor);

// Dtype, device, shape, and stride 1 in the last axis; each kind for all arguments before the next.
void check_arguments(const char* op, Device device, std::span<const Argument> arguments);
// No two elements of an output may share memory, with each other, an input or another output.
void check_outputs(const char* op, std::span<const Argument> outputs,
                   std::span<const Argument> inputs);

}  // namespace flashomni
