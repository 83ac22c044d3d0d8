// module.cpp -- the extension module flashomni._core: the C++ interface, as thin as it goes.
// The Python package around it (flashomni/*.py) is what users call.
// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "flashomni/error.h"

namespace flashomni::python {
namespace {

PyObject* exception_type(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return PyExc_ValueError;
    case ErrorCode::kUnsupported: return PyExc_NotImplementedError;
    case ErrorCode::kOutOfMemory: return PyExc_MemoryError;
    case ErrorCode::kIo: return PyExc_OSError;
    case ErrorCode::kCuda: return PyExc_RuntimeError;
  }
  return PyExc_RuntimeError;
}

void translate_error(const std::exception_ptr& pending, void*) {
  try {
    std::rethrow_exception(pending);
  } catch (const Error& error) {
    PyErr_SetString(exception_type(error.code()), error.what());
  }
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "The C++ interface of FlashOmni; use the package `flashomni` instead.";
  module.attr("__version__") = FLASHOMNI_VERSION;
  nb::register_exception_translator(translate_error);
  bind_arrays(module);
  bind_backend(module);
  bind_symbols(module);
  bind_operators(module);
  bind_selection(module);
  bind_pipeline(module);
}

}  // namespace flashomni::python
