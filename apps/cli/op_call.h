// op_call.h -- one call of `run-op`: tensors and settings by name in, tensors by name out.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "flashomni/backend.h"
#include "flashomni/safetensors.h"
#include "flashomni/symbols.h"

namespace flashomni::cli {

using Settings = std::map<std::string, std::string>;

class OpCall {
 public:
  // The operator runs in the dtype of the setting `dtype`, else of the tensor `primary`.
  // `backend` outlives the call.
  OpCall(std::string op, const std::filesystem::path& input, Settings settings,
         const std::string& primary, Backend& backend);

  Backend& backend() const { return backend_; }
  DType dtype() const { return dtype_; }

  // Settings. A value of another form is a UsageError.
  int integer(const std::string& name, int fallback) const;
  int required_integer(const std::string& name) const;
  double number(const std::string& name, double fallback) const;
  std::string text(const std::string& name, const std::string& fallback) const;
  bool has_setting(const std::string& name) const { return settings_.contains(name); }

  // Tensors. Floating ones arrive on the backend's device, converted to `dtype`; the optional ones
  // are empty if the file has none.
  bool has(const std::string& name) const { return file_.contains(name); }
  Layout layout_of(const std::string& name, int rank) const;
  Tensor operand(const std::string& name, int rank) const;
  Tensor optional_operand(const std::string& name, int rank) const;
  Tensor optional_f32(const std::string& name, int rank) const;
  PackedWeight weight(int column_group) const;  // "w"
  // u8, each at most `largest`; every element is `fallback` if the file has none.
  Tensor bytes(const std::string& name, const Layout& layout, int largest, int fallback) const;
  // Host memory of the file, as it is there.
  ConstTensorView mask(const std::string& name) const;      // {} if absent
  std::vector<int> lengths(const std::string& name) const;  // i32; empty if absent
  Tensor filled(const Layout& layout, DType dtype, float value) const;
  // `name` of the file if it is there, else every element is `value`.
  Tensor initial(const std::string& name, const Layout& layout, DType dtype, float value) const;

  void save(const std::string& name, Tensor value);
  void write(const std::filesystem::path& output) const;
  const std::map<std::string, Tensor>& saved() const { return saved_; }

 private:
  ConstTensorView find(const std::string& name, int rank) const;
  Tensor upload(Tensor host) const;
  [[noreturn]] void fail(const std::string& sentence) const;

  std::string op_;
  SafetensorsFile file_;
  Settings settings_;
  Backend& backend_;
  DType dtype_;
  std::map<std::string, Tensor> saved_;  // host memory
};

// The operators, by the names that the command line gives them.
void run_attention(OpCall& call);
void run_gemm_q(OpCall& call);
void run_gemm_o_update(OpCall& call);
void run_gemm_o_dispatch(OpCall& call);
void run_policy(OpCall& call);

}  // namespace flashomni::cli
