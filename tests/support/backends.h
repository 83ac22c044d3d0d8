// backends.h -- every backend that runs on this machine, and moving a case to and from its device.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "flashomni/backend.h"

namespace flashomni::test {

struct BackendParam {
  std::string backend, kernels;  // kernels: a kernel set of the cpu backend, else empty
  DType dtype = DType::kF32;

  BackendOptions options() const {
    BackendOptions options;
    if (!kernels.empty()) options.cpu_kernels = kernels;
    options.num_threads = 2;
    return options;
  }
  std::unique_ptr<Backend> make() const { return make_backend(backend, options()); }
};

inline std::vector<BackendParam> backends_for(DType dtype) {
  std::vector<BackendParam> params;
  for (const BackendInfo& info : list_backends()) {
    // The cuda backend has kernels for few shapes, and tests of its own: tests/cuda.
    if (!info.available || info.name == "cuda") continue;
    if (info.name == "cpu") {
      for (const std::string& set : cpu_kernel_sets()) params.push_back({"cpu", set, dtype});
    } else {
      params.push_back({std::string(info.name), "", dtype});
    }
  }
  return params;
}

inline std::vector<BackendParam> backends_and_dtypes() {
  std::vector<BackendParam> params;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (BackendParam& param : backends_for(dtype)) params.push_back(std::move(param));
  }
  return params;
}

inline std::ostream& operator<<(std::ostream& out, const BackendParam& param) {
  out << param.backend << "_";
  if (!param.kernels.empty()) out << param.kernels << "_";
  return out << dtype_name(param.dtype);
}

inline std::string param_name(const testing::TestParamInfo<BackendParam>& info) {
  return testing::PrintToString(info.param);
}

// A test of one backend with operands of one dtype.
class BackendTest : public testing::TestWithParam<BackendParam> {
 protected:
  std::unique_ptr<Backend> backend = GetParam().make();
  DType dtype = GetParam().dtype;
};

#define FO_TEST_EVERY_BACKEND(Suite)                                                        \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, testing::ValuesIn(test::backends_and_dtypes()), \
                           test::param_name)

// The bytes of a contiguous host tensor on the device of `backend`, and back.
inline Tensor upload(Backend& backend, ConstTensorView host) {
  Tensor device = backend.allocate(host.dtype, host.layout);
  backend.copy(host, device, {});
  return device;
}

inline void download(Backend& backend, ConstTensorView device, TensorView host) {
  backend.copy(device, host, {});
  backend.synchronize({});
}

}  // namespace flashomni::test
