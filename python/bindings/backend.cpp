// backend.cpp -- backends and packed weights.
// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace flashomni::python {

namespace {

std::unique_ptr<Backend> make(const std::string& name, int num_threads, int device_index) {
  BackendOptions options;
  options.num_threads = num_threads;
  options.device_index = device_index;
  return make_backend(name, options);
}

nb::list backends() {
  nb::list infos;
  for (const BackendInfo& info : list_backends()) {
    infos.append(nb::make_tuple(std::string(info.name), info.available, info.detail));
  }
  return infos;
}

// A weight on the backend's device stays there if the kernels can read it as it lies; else it is
// fetched, because backends pack from host memory.
PackedWeight pack(Backend& backend, ConstTensorView weight, DType dtype, int column_group,
                  Stream stream) {
  if (weight.device.type == DeviceType::kCpu) {
    return backend.pack_weight(weight, dtype, column_group);
  }
  check_device("pack: w", weight, backend);
  if (weight.dtype == dtype && weight.stride(1) == 1) {
    if (PackedWeight lent = backend.borrow_weight(weight, column_group); lent.storage) return lent;
  }
  if (!weight.layout.is_contiguous()) {
    throw Error(ErrorCode::kInvalidArgument, "pack: w must be contiguous on a GPU");
  }
  const Tensor host = Tensor::host(weight.dtype, weight.layout);
  backend.copy(weight, host, stream);
  backend.synchronize(stream);
  return backend.pack_weight(host, dtype, column_group);
}

}  // namespace

void bind_backend(nb::module_& module) {
  nb::enum_<DType>(module, "DType")
      .value("f32", DType::kF32)
      .value("bf16", DType::kBF16)
      .value("f16", DType::kF16);
  module.def("list_backends", backends,
             nb::sig("def list_backends() -> list[tuple[str, bool, str]]"),
             "(name, available, detail) of every backend of this build.");
  module.def("cpu_kernel_sets", cpu_kernel_sets,
             "The kernel sets of the cpu backend that run on this machine, best last.");
  nb::class_<LockedBackend>(module, "Backend")
      .def(
          "__init__",
          [](LockedBackend* self, const std::string& name, int num_threads, int device_index) {
            new (self) LockedBackend(make(name, num_threads, device_index));
          },
          nb::arg("name"), nb::arg("num_threads") = 0, nb::arg("device_index") = 0)
      .def_prop_ro("name", [](const LockedBackend& b) { return std::string(b.constant().name()); })
      .def_prop_ro("device_index",
                   [](const LockedBackend& b) { return b.constant().device().index; })
      .def_prop_ro("description",
                   [](const LockedBackend& b) { return b.constant().description(); });
  nb::class_<PackedWeight>(module, "Weight", "A weight matrix in a backend's own order.")
      .def(
          "__init__",
          [](PackedWeight* self, LockedBackend& backend, const Array& weight, DType dtype,
             int column_group, std::uintptr_t stream) {
            new (self) PackedWeight(backend.run([&](Backend& b) {
              return pack(b, weight.view, dtype, column_group, stream_of(stream));
            }));
          },
          nb::arg("backend"), nb::arg("weight"), nb::arg("dtype"), nb::arg("column_group"),
          nb::arg("stream"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def_ro("out_features", &PackedWeight::out_features)
      .def_ro("in_features", &PackedWeight::in_features)
      .def_ro("column_group", &PackedWeight::column_group);
}

}  // namespace flashomni::python
