// bindings.h -- what the files of the extension module share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <sys/types.h>  // pid_t

#include "flashomni/backend.h"
#include "flashomni/tensor.h"

namespace flashomni::python {

namespace nb = nanobind;

// An array of the caller's, seen through DLPack without a copy. Holds the array alive.
struct Array {
  nb::ndarray<nb::ro> owner;
  TensorView view;
};

// Python's None for an optional array arrives as nullptr.
inline TensorView view_or_none(const Array* array) { return array ? array->view : TensorView{}; }

// A Backend that any thread may call: one computes, the others wait. See
// docs/decisions/0004-python-default-backends.md.
class LockedBackend {
 public:
  LockedBackend(const std::string& name, int num_threads, int device_index);
  ~LockedBackend();

  // Calls function(backend) without the GIL.
  template <typename Function>
  auto run(Function&& function) {
    check_process();
    nb::gil_scoped_release no_gil;
    const std::lock_guard lock(mutex_);
    return function(*backend_);
  }
  const Backend& backend() const { return *backend_; }

 private:
  void check_process() const;  // throws kUnsupported in a process forked after construction

  std::unique_ptr<Backend> backend_;
  std::mutex mutex_;
  pid_t process_;
};

// The CUDA stream that Python code knows as an integer; 0 is the default stream.
inline Stream stream_of(std::uintptr_t handle) { return {reinterpret_cast<void*>(handle)}; }

void bind_arrays(nb::module_& module);
void bind_backend(nb::module_& module);
void bind_symbols(nb::module_& module);
void bind_operators(nb::module_& module);

}  // namespace flashomni::python
