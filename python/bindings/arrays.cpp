// arrays.cpp -- DLPack arrays as tensor views.
// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "flashomni/error.h"

namespace flashomni::python {
namespace {

[[noreturn]] void reject(const std::string& name, const std::string& reason) {
  throw Error(ErrorCode::kInvalidArgument, name + " " + reason);
}

std::string describe(nb::dlpack::dtype dtype) {
  const char* kind = "dtype code ";
  switch (static_cast<nb::dlpack::dtype_code>(dtype.code)) {
    case nb::dlpack::dtype_code::Int: kind = "int"; break;
    case nb::dlpack::dtype_code::UInt: kind = "uint"; break;
    case nb::dlpack::dtype_code::Float: kind = "float"; break;
    case nb::dlpack::dtype_code::Complex: kind = "complex"; break;
    default: return kind + std::to_string(dtype.code);
  }
  return kind + std::to_string(dtype.bits);
}

// NumPy arrays of ml_dtypes.bfloat16 arrive as uint16: NumPy exports no bf16 through DLPack.
DType dtype_of(const std::string& name, nb::dlpack::dtype dtype, bool is_bf16) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is_bf16 && is(Code::UInt, 16)) return DType::kBF16;
  if (is(Code::Float, 32)) return DType::kF32;
  if (is(Code::Float, 16)) return DType::kF16;
  if (is(Code::Bfloat, 16)) return DType::kBF16;
  if (is(Code::UInt, 8) || is(Code::Bool, 8)) return DType::kU8;
  if (is(Code::Int, 32)) return DType::kI32;
  if (is(Code::Int, 64)) return DType::kI64;
  reject(name, "has dtype " + describe(dtype) + ", allowed are float32, bfloat16 and float16");
}

Device device_of(const std::string& name, const nb::ndarray<nb::ro>& array) {
  switch (array.device_type()) {
    case nb::device::cpu::value:
    case nb::device::cuda_host::value: return {DeviceType::kCpu, 0};
    case nb::device::cuda::value:
    case nb::device::cuda_managed::value: return {DeviceType::kCuda, array.device_id()};
    default:
      throw Error(ErrorCode::kUnsupported, name + " lies on a device of DLPack type " +
                                               std::to_string(array.device_type()) +
                                               ", supported are CPU and CUDA");
  }
}

Layout layout_of(const std::string& name, const nb::ndarray<nb::ro>& array) {
  if (array.ndim() > kMaxRank) {
    reject(name, "has " + std::to_string(array.ndim()) + " axes, at most 4 are allowed");
  }
  Layout layout;
  layout.rank = static_cast<int>(array.ndim());
  for (int axis = 0; axis < layout.rank; ++axis) {
    layout.sizes[axis] = static_cast<index_t>(array.shape(axis));
    layout.strides[axis] = array.stride(axis);
  }
  return layout;
}

template <typename NdArray>
NdArray import(const std::string& name, nb::handle object, const char* requirement) {
  NdArray array;
  if (!nb::try_cast(object, array, /*convert=*/false)) {
    throw nb::type_error(
        (name + " is " + nb::type_name(object.type()).c_str() + ", need " + requirement).c_str());
  }
  return array;
}

Array make_array(const std::string& name, nb::handle object, bool writable, bool is_bf16) {
  nb::ndarray<nb::ro> owner =
      writable
          ? nb::ndarray<nb::ro>(import <nb::ndarray<>>(name, object, "a writable DLPack array"))
          : import <nb::ndarray<nb::ro>>(name, object, "an array that speaks DLPack");
  const DType dtype = dtype_of(name, owner.dtype(), is_bf16);
  const Layout layout = layout_of(name, owner);
  const Device device = device_of(name, owner);
  // Operators take inputs as read-only views; `writable` is only asked for outputs.
  void* data = const_cast<void*>(static_cast<const void*>(owner.data()));
  return {std::move(owner), TensorView(data, dtype, layout, device)};
}

std::string name_of(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

nb::tuple shape_of(const Array& array) {
  nb::list sizes;
  for (int axis = 0; axis < array.view.rank(); ++axis) sizes.append(array.view.size(axis));
  return nb::tuple(sizes);
}

}  // namespace

void check_device(const char* name, ConstTensorView tensor, const Backend& backend) {
  if (tensor.device == backend.device()) return;
  reject(name, "is on " + name_of(tensor.device) + ", expected " + name_of(backend.device()));
}

void bind_arrays(nb::module_& module) {
  nb::class_<Array>(module, "Array", "A DLPack array seen without a copy.")
      .def(
          "__init__",
          [](Array* self, const std::string& name, nb::handle object, bool writable, bool is_bf16) {
            new (self) Array(make_array(name, object, writable, is_bf16));
          },
          nb::arg("name"), nb::arg("object"), nb::kw_only(), nb::arg("writable") = false,
          nb::arg("is_bf16") = false,
          "`name` opens error messages. `is_bf16`: the elements, uint16 to DLPack, are bfloat16.")
      .def_prop_ro("shape", shape_of, nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro("dtype", [](const Array& a) { return std::string(dtype_name(a.view.dtype)); })
      .def_prop_ro("is_cuda",
                   [](const Array& a) { return a.view.device.type == DeviceType::kCuda; })
      .def_prop_ro("device_index", [](const Array& a) { return a.view.device.index; });
}

}  // namespace flashomni::python
