#include "ops/checks.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/check.h"
#include "core/half.h"

namespace flashomni {
namespace {

std::string name_of(DType dtype) { return std::string(dtype_name(dtype)); }

std::string name_of(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

struct ByteRange {
  std::intptr_t begin = 0, end = 0;
  std::intptr_t size() const { return end - begin; }
};

// The bytes between the first and the last element of axes [first_axis, rank) at index 0 of the
// others. `x` has elements.
ByteRange range_of(ConstTensorView x, int first_axis) {
  index_t low = 0, high = 1;
  for (int axis = first_axis; axis < x.rank(); ++axis) {
    const index_t span = (x.size(axis) - 1) * x.stride(axis);
    (span < 0 ? low : high) += span;
  }
  const auto base = reinterpret_cast<std::intptr_t>(x.data);
  return {base + low * size_in_bytes(x.dtype), base + high * size_in_bytes(x.dtype)};
}

// True if the elements of axes [0, axis] of `x` all lie a multiple of `period` bytes apart.
bool repeats_every(ConstTensorView x, int axis, index_t period) {
  for (int outer = 0; outer <= axis; ++outer) {
    if (x.size(outer) > 1 && x.stride(outer) * size_in_bytes(x.dtype) % period != 0) return false;
  }
  return true;
}

// True if a and b are column slices of one buffer whose rows are `period` bytes long.
bool interleave(ConstTensorView a, ConstTensorView b, int axis) {
  const index_t period = a.stride(axis) * size_in_bytes(a.dtype);
  if (axis >= b.rank() || period <= 0) return false;
  if (!repeats_every(a, axis, period) || !repeats_every(b, axis, period)) return false;
  const ByteRange row_a = range_of(a, axis + 1), row_b = range_of(b, axis + 1);
  const std::intptr_t distance = ((row_b.begin - row_a.begin) % period + period) % period;
  return distance >= row_a.size() && distance + row_b.size() <= period;
}

bool overlap(ConstTensorView a, ConstTensorView b) {
  if (a.layout.num_elements() == 0 || b.layout.num_elements() == 0) return false;
  const ByteRange all_a = range_of(a, 0), all_b = range_of(b, 0);
  if (all_a.end <= all_b.begin || all_b.end <= all_a.begin) return false;
  for (int axis = 0; axis < a.rank(); ++axis) {
    if (interleave(a, b, axis)) return false;
  }
  return true;
}

}  // namespace

void check_present(const char* op, const char* name, ConstTensorView tensor, int rank) {
  const bool empty = tensor.rank() > 0 && tensor.layout.num_elements() == 0;
  FO_CHECK(tensor || empty, "%s: %s is missing", op, name);
  FO_CHECK(tensor.rank() == rank, "%s: %s has rank %d, expected %d", op, name, tensor.rank(), rank);
}

void check_float(const char* op, const char* name, ConstTensorView tensor) {
  FO_CHECK(is_float(tensor.dtype), "%s: %s is %s, expected f32, bf16 or f16", op, name,
           name_of(tensor.dtype).c_str());
}

void check_arguments(const char* op, Device device, std::span<const Argument> arguments) {
  for (const Argument& argument : arguments) {
    check_present(op, argument.name, argument.tensor, argument.shape.rank);
  }
  for (const Argument& argument : arguments) {
    FO_CHECK(argument.tensor.dtype == argument.dtype, "%s: %s is %s, expected %s", op,
             argument.name, name_of(argument.tensor.dtype).c_str(),
             name_of(argument.dtype).c_str());
  }
  for (const Argument& argument : arguments) {
    FO_CHECK(argument.tensor.device == device, "%s: %s is on %s, expected %s", op, argument.name,
             name_of(argument.tensor.device).c_str(), name_of(device).c_str());
  }
  for (const Argument& argument : arguments) {
    FO_CHECK(argument.tensor.layout.sizes == argument.shape.sizes, "%s: %s is %s, expected %s", op,
             argument.name, argument.tensor.layout.to_string().c_str(),
             argument.shape.to_string().c_str());
  }
  for (const Argument& argument : arguments) {
    const int last = argument.shape.rank - 1;
    FO_CHECK(argument.tensor.size(last) <= 1 || argument.tensor.stride(last) == 1,
             "%s: %s has stride %lld in its last axis, expected 1", op, argument.name,
             static_cast<long long>(argument.tensor.stride(last)));
  }
}

void check_outputs(const char* op, std::span<const Argument> outputs,
                   std::span<const Argument> inputs) {
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    const Argument& output = outputs[n];
    if (output.tensor.layout.num_elements() == 0) continue;
    for (int axis = 0; axis < output.tensor.rank(); ++axis) {
      FO_CHECK(output.tensor.size(axis) <= 1 || output.tensor.stride(axis) > 0,
               "%s: %s has stride %lld in axis %d, expected at least 1", op, output.name,
               static_cast<long long>(output.tensor.stride(axis)), axis);
    }
    for (const Argument& input : inputs) {
      FO_CHECK(!overlap(output.tensor, input.tensor), "%s: %s overlaps %s", op, output.name,
               input.name);
    }
    for (const Argument& other : outputs.first(n)) {
      FO_CHECK(!overlap(output.tensor, other.tensor), "%s: %s overlaps %s", op, output.name,
               other.name);
    }
  }
}

}  // namespace flashomni
