#include "flashomni/tensor.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstring>
#include <new>
#include <utility>

#include "core/check.h"
#include "core/half.h"

namespace flashomni {

index_t size_in_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kU8: return 1;
    case DType::kI64: return 8;
  }
  return 0;
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kU8: return "u8";
    case DType::kI32: return "i32";
    case DType::kI64: return "i64";
  }
  return "?";
}

Layout::Layout(std::span<const index_t> wanted) {
  FO_CHECK(wanted.size() <= kMaxRank, "tensor: %zu axes, at most %d are supported", wanted.size(),
           kMaxRank);
  rank = static_cast<int>(wanted.size());
  index_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    FO_CHECK(wanted[axis] >= 0, "tensor: axis %d has size %lld, must not be negative", axis,
             static_cast<long long>(wanted[axis]));
    sizes[axis] = wanted[axis];
    strides[axis] = stride;
    stride *= wanted[axis];
  }
}

index_t Layout::num_elements() const {
  index_t count = 1;
  for (int axis = 0; axis < rank; ++axis) count *= sizes[axis];
  return count;
}

bool Layout::is_contiguous() const {
  index_t stride = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (sizes[axis] != 1 && strides[axis] != stride) return false;
    stride *= sizes[axis];
  }
  return true;
}

std::string Layout::to_string() const {
  std::string text = "[";
  for (int axis = 0; axis < rank; ++axis) {
    text += (axis ? ", " : "") + std::to_string(sizes[axis]);
  }
  return text + "]";
}

template <typename Data>
BasicTensorView<Data> BasicTensorView<Data>::slice(int axis, index_t begin, index_t end) const {
  FO_ASSERT(axis < layout.rank && begin >= 0 && begin <= end && end <= layout.sizes[axis]);
  using Byte = std::conditional_t<std::is_const_v<Data>, const char, char>;
  BasicTensorView part = *this;
  part.data = static_cast<Byte*>(data) + begin * layout.strides[axis] * size_in_bytes(dtype);
  part.layout.sizes[axis] = end - begin;
  return part;
}

template <typename Data>
BasicTensorView<Data> BasicTensorView<Data>::reshape(std::initializer_list<index_t> sizes) const {
  const Layout wanted(sizes);
  FO_CHECK(layout.is_contiguous() && wanted.num_elements() == layout.num_elements(),
           "reshape: a %scontiguous tensor %s cannot be seen as %s",
           layout.is_contiguous() ? "" : "non-", layout.to_string().c_str(),
           wanted.to_string().c_str());
  return {data, dtype, wanted, device};
}

template struct BasicTensorView<void>;
template struct BasicTensorView<const void>;

Tensor::Tensor(TensorView view, Deleter deleter, void* context)
    : view_(view), deleter_(deleter), context_(context) {}

Tensor::Tensor(Tensor&& other) noexcept
    : view_(std::exchange(other.view_, {})),
      deleter_(std::exchange(other.deleter_, nullptr)),
      context_(std::exchange(other.context_, nullptr)) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(view_, other.view_);
  std::swap(deleter_, other.deleter_);
  std::swap(context_, other.context_);
  return *this;
}

Tensor::~Tensor() {
  if (deleter_) deleter_(view_.data, context_);
}

namespace {

constexpr std::size_t kLine = 64;  // a cache line, and the widest SIMD register
constexpr std::size_t kHugePage = std::size_t{2} << 20;

template <std::size_t kAlignment>
Tensor aligned_tensor(DType dtype, Layout layout, std::size_t bytes) {
  constexpr std::align_val_t alignment{kAlignment};
  void* data = ::operator new(bytes, alignment, std::nothrow);
  if (!data) FO_FAIL(kOutOfMemory, "tensor: cannot allocate %zu bytes", bytes);
#ifdef __linux__
  // Only a request. A linear layer runs a tenth faster: its weight has more 4 KiB pages than the
  // processor remembers, and prefetchers stop at the end of each.
  if (kAlignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return Tensor(
      TensorView(data, dtype, layout),
      [](void* memory, void*) { ::operator delete(memory, alignment); }, nullptr);
}

}  // namespace

Tensor Tensor::host(DType dtype, Layout layout) {
  // One spare cache line: kernels may read, never write, up to a vector past the end.
  const auto bytes = static_cast<std::size_t>(layout.num_elements() * size_in_bytes(dtype)) + kLine;
  return bytes < kHugePage ? aligned_tensor<kLine>(dtype, layout, bytes)
                           : aligned_tensor<kHugePage>(dtype, layout, bytes);
}

Tensor Tensor::host_zeros(DType dtype, Layout layout) {
  Tensor tensor = host(dtype, layout);
  std::memset(tensor.view().data, 0, static_cast<std::size_t>(tensor.bytes()));
  return tensor;
}

Tensor Tensor::clone() const {
  if (!*this) return {};
  FO_CHECK(view_.device.type == DeviceType::kCpu, "clone: only host tensors can be cloned");
  FO_ASSERT(view_.layout.is_contiguous());
  Tensor copy = host(view_.dtype, view_.layout);
  std::memcpy(copy.view().data, view_.data, static_cast<std::size_t>(bytes()));
  return copy;
}

namespace {

template <typename From, typename To>
void copy_converted(ConstTensorView from, const From* source, To* to) {
  const int last = from.rank() - 1;
  const index_t width = last < 0 ? 1 : from.size(last), step = last < 0 ? 0 : from.stride(last);
  const index_t rows = width ? from.layout.num_elements() / width : 0;
  for (index_t row = 0; row < rows; ++row) {
    index_t offset = 0, rest = row;
    for (int axis = last - 1; axis >= 0; --axis) {
      offset += rest % from.size(axis) * from.stride(axis);
      rest /= from.size(axis);
    }
    for (index_t i = 0; i < width; ++i) {
      *to++ = from_float<To>(to_float(source[offset + i * step]));
    }
  }
}

}  // namespace

Tensor convert(ConstTensorView value, DType dtype) {
  FO_CHECK(value.device.type == DeviceType::kCpu, "convert: only host tensors can be converted");
  FO_CHECK(is_float(value.dtype) && is_float(dtype), "convert: from %s to %s, only f32, bf16, f16",
           std::string(dtype_name(value.dtype)).c_str(), std::string(dtype_name(dtype)).c_str());
  Tensor converted =
      Tensor::host(dtype, Layout(std::span(value.layout.sizes.data(), value.layout.rank)));
  dispatch_float(value.dtype, [&](auto from) {
    dispatch_float(dtype, [&](auto to) {
      copy_converted(value, value.as<decltype(from)>(), converted.as<decltype(to)>());
    });
  });
  return converted;
}

}  // namespace flashomni
