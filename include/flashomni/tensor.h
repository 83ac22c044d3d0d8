// tensor.h -- dtypes, devices, and two kinds of array: views (trivially copyable) and owners.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace flashomni {

using index_t = std::int64_t;  // element counts and offsets

enum class DType : std::uint8_t { kF32, kBF16, kF16, kU8, kI32, kI64 };

index_t size_in_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  // "f32", "bf16", ...

enum class DeviceType : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// A CUDA stream (cudaStream_t) for CUDA backends; CPU backends ignore it and run synchronously.
struct Stream {
  void* handle = nullptr;
};

inline constexpr int kMaxRank = 4;

// Sizes and strides of an array of up to four axes. Strides are in elements.
struct Layout {
  int rank = 0;
  std::array<index_t, kMaxRank> sizes{};
  std::array<index_t, kMaxRank> strides{};

  Layout() = default;
  // Row-major and dense. Throws kInvalidArgument for more than kMaxRank axes or a negative size.
  explicit Layout(std::span<const index_t> sizes);
  Layout(std::initializer_list<index_t> sizes)
      : Layout(std::span<const index_t>(sizes.begin(), sizes.size())) {}

  index_t num_elements() const;
  bool is_contiguous() const;     // row-major and dense; axes of size 1 may have any stride
  std::string to_string() const;  // "[2, 300, 4, 64]"
};

// A non-owning array; valid while the owner of the memory lives. `Data` is void or const void.
template <typename Data>
struct BasicTensorView {
  Data* data = nullptr;  // nullptr: "no tensor", used for optional arguments
  DType dtype = DType::kF32;
  Device device{};
  Layout layout{};

  BasicTensorView() = default;
  BasicTensorView(Data* data, DType dtype, Layout layout, Device device = {})
      : data(data), dtype(dtype), device(device), layout(layout) {}

  // A writable view converts to a read-only one.
  operator BasicTensorView<const void>() const { return {data, dtype, layout, device}; }

  explicit operator bool() const { return data != nullptr; }
  int rank() const { return layout.rank; }
  index_t size(int axis) const { return layout.sizes[axis]; }
  index_t stride(int axis) const { return layout.strides[axis]; }

  // Elements [begin, end) of `axis`; the other axes are whole.
  BasicTensorView slice(int axis, index_t begin, index_t end) const;
  // The same memory under another row-major shape; the view must be contiguous.
  BasicTensorView reshape(std::initializer_list<index_t> sizes) const;
  // Element pointer, unchecked beyond a debug assertion that T fits `dtype`.
  template <typename T>
  auto* as() const {
    if constexpr (std::is_const_v<Data>) {
      return static_cast<const T*>(data);
    } else {
      return static_cast<T*>(data);
    }
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

// Owning array. Move-only; `clone()` makes the cost of a copy visible.
class Tensor {
 public:
  // Frees `data`; `context` is whatever the allocator stored.
  using Deleter = void (*)(void* data, void* context);

  Tensor() = default;
  Tensor(TensorView view, Deleter deleter, void* context);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  // Host memory aligned to 64 bytes, uninitialised. Throws kOutOfMemory.
  static Tensor host(DType dtype, Layout layout);
  static Tensor host_zeros(DType dtype, Layout layout);
  Tensor clone() const;  // host tensors only

  TensorView view() const { return view_; }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }
  explicit operator bool() const { return view_.data != nullptr; }
  DType dtype() const { return view_.dtype; }
  index_t size(int axis) const { return view_.size(axis); }
  index_t num_elements() const { return view_.layout.num_elements(); }
  index_t bytes() const { return num_elements() * size_in_bytes(view_.dtype); }
  template <typename T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  TensorView view_;
  Deleter deleter_ = nullptr;
  void* context_ = nullptr;
};

// A contiguous host copy of a floating host tensor in another floating dtype, rounded to nearest
// even. Throws kInvalidArgument for a device tensor or another dtype.
Tensor convert(ConstTensorView value, DType dtype);

}  // namespace flashomni
