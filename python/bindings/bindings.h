// bindings.h -- what the files of the extension module share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <unistd.h>  // getpid

#include "flashomni/backend.h"
#include "flashomni/error.h"
#include "flashomni/tensor.h"

namespace flashomni::python {

namespace nb = nanobind;

// An array of the caller's, seen through DLPack without a copy. Holds the array alive.
struct Array {
  nb::ndarray<nb::ro> owner;
  TensorView view;
};

// Throws kInvalidArgument unless `tensor` lies where `backend` computes: for the backend's
// functions that have no checked entrance.
void check_device(const char* name, ConstTensorView tensor, const Backend& backend);

// Python's None for an optional array arrives as nullptr.
inline TensorView view_or_none(const Array* array) { return array ? array->view : TensorView{}; }

// A Backend or Pipeline that any thread may call: one computes, the others wait. See
// docs/decisions/0004-python-default-backends.md.
template <typename T>
class Locked {
 public:
  explicit Locked(std::unique_ptr<T> object) : object_(std::move(object)), process_(getpid()) {}
  // Threads do not survive fork(): a forked child can neither use nor join them.
  ~Locked() {
    if (getpid() != process_) static_cast<void>(object_.release());
  }

  // Calls function(object) without the GIL.
  template <typename Function>
  auto run(Function&& function) {
    if (getpid() != process_) {
      throw Error(ErrorCode::kUnsupported,
                  "backend: made before fork(), its threads do not exist in this process; make "
                  "another one here");
    }
    nb::gil_scoped_release no_gil;
    const std::lock_guard lock(mutex_);
    return function(*object_);
  }
  // For what never changes: names, defaults.
  const T& constant() const { return *object_; }

 private:
  std::unique_ptr<T> object_;
  std::mutex mutex_;
  pid_t process_;
};
using LockedBackend = Locked<Backend>;

// The CUDA stream that Python code knows as an integer; 0 is the default stream.
inline Stream stream_of(std::uintptr_t handle) { return {reinterpret_cast<void*>(handle)}; }

void bind_arrays(nb::module_& module);
void bind_backend(nb::module_& module);
void bind_symbols(nb::module_& module);
void bind_operators(nb::module_& module);
void bind_selection(nb::module_& module);
void bind_pipeline(nb::module_& module);

}  // namespace flashomni::python
