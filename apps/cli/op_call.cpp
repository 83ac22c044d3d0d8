#include "op_call.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "backend_options.h"
#include "commands.h"
#include "flashomni/error.h"

namespace flashomni::cli {
namespace {

template <typename T>
T parse(const std::string& name, const std::string& value, const char* form) {
  T parsed{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), parsed);
  if (error != std::errc() || end != value.data() + value.size()) {
    throw UsageError("run-op: --set " + name + "=" + value + " is not " + form);
  }
  return parsed;
}

}  // namespace

OpCall::OpCall(std::string op, const std::filesystem::path& input, Settings settings,
               const std::string& primary, Backend& backend)
    : op_(std::move(op)), file_(input), settings_(std::move(settings)), backend_(backend) {
  const auto wanted = settings_.find("dtype");
  dtype_ = wanted == settings_.end() ? find(primary, -1).dtype
                                     : parse_dtype(wanted->second, "run-op: --set dtype");
}

void OpCall::fail(const std::string& sentence) const {
  throw Error(ErrorCode::kInvalidArgument, "run-op " + op_ + ": " + sentence);
}

int OpCall::integer(const std::string& name, int fallback) const {
  const auto setting = settings_.find(name);
  return setting == settings_.end() ? fallback : parse<int>(name, setting->second, "an integer");
}

int OpCall::required_integer(const std::string& name) const {
  if (!has_setting(name)) throw UsageError("run-op " + op_ + " needs --set " + name + "=...");
  return integer(name, 0);
}

double OpCall::number(const std::string& name, double fallback) const {
  const auto setting = settings_.find(name);
  return setting == settings_.end() ? fallback : parse<double>(name, setting->second, "a number");
}

std::string OpCall::text(const std::string& name, const std::string& fallback) const {
  const auto setting = settings_.find(name);
  return setting == settings_.end() ? fallback : setting->second;
}

ConstTensorView OpCall::find(const std::string& name, int rank) const {
  if (!has(name)) fail("the input has no tensor '" + name + "'");
  const ConstTensorView view = file_.tensor(name);
  if (rank >= 0 && view.rank() != rank) {
    fail(name + " is " + view.layout.to_string() + ", expected " + std::to_string(rank) + " axes");
  }
  return view;
}

Layout OpCall::layout_of(const std::string& name, int rank) const {
  return find(name, rank).layout;
}

Tensor OpCall::upload(Tensor host) const {
  if (backend_.device().type == DeviceType::kCpu) return host;
  Tensor device = backend_.allocate(host.dtype(), host.view().layout);
  backend_.copy(host, device, {});
  backend_.synchronize({});
  return device;
}

Tensor OpCall::operand(const std::string& name, int rank) const {
  return upload(convert(find(name, rank), dtype_));
}

Tensor OpCall::optional_operand(const std::string& name, int rank) const {
  return has(name) ? operand(name, rank) : Tensor();
}

Tensor OpCall::optional_f32(const std::string& name, int rank) const {
  return has(name) ? upload(convert(find(name, rank), DType::kF32)) : Tensor();
}

Tensor OpCall::bytes(const std::string& name, const Layout& layout, int largest,
                     int fallback) const {
  Tensor host = Tensor::host(DType::kU8, layout);
  auto* values = host.as<std::uint8_t>();
  std::fill_n(values, host.num_elements(), static_cast<std::uint8_t>(fallback));
  if (has(name)) {
    const ConstTensorView view = find(name, layout.rank);
    if (view.dtype != DType::kU8 || view.layout.sizes != layout.sizes) {
      fail(name + " is " + std::string(dtype_name(view.dtype)) + " " + view.layout.to_string() +
           ", expected u8 " + layout.to_string());
    }
    std::memcpy(values, view.data, static_cast<std::size_t>(host.bytes()));
  }
  const int found = host.num_elements() ? *std::max_element(values, values + host.bytes()) : 0;
  if (found > largest) {
    fail(name + " has the value " + std::to_string(found) + ", there are terms up to order " +
         std::to_string(largest));
  }
  return upload(std::move(host));
}

PackedWeight OpCall::weight(int column_group) const {
  const Tensor host = convert(find("w", 2), DType::kF32);
  return backend_.pack_weight(host, dtype_, column_group);
}

ConstTensorView OpCall::mask(const std::string& name) const {
  return has(name) ? file_.tensor(name) : ConstTensorView();
}

std::vector<int> OpCall::lengths(const std::string& name) const {
  if (!has(name)) return {};
  const ConstTensorView view = find(name, 1);
  if (view.dtype != DType::kI32) {
    fail(name + " is " + std::string(dtype_name(view.dtype)) + ", expected i32");
  }
  std::vector<int> lengths(static_cast<std::size_t>(view.size(0)));
  std::memcpy(lengths.data(), view.data, lengths.size() * sizeof(int));
  return lengths;
}

Tensor OpCall::filled(const Layout& layout, DType dtype, float value) const {
  Tensor tensor = Tensor::host(DType::kF32, layout);
  std::fill_n(tensor.as<float>(), tensor.num_elements(), value);
  return upload(dtype == DType::kF32 ? std::move(tensor) : convert(tensor, dtype));
}

Tensor OpCall::initial(const std::string& name, const Layout& layout, DType dtype,
                       float value) const {
  if (!has(name)) return filled(layout, dtype, value);
  const ConstTensorView view = find(name, layout.rank);
  if (view.layout.sizes != layout.sizes) {
    fail(name + " is " + view.layout.to_string() + ", expected " + layout.to_string());
  }
  return upload(convert(view, dtype));
}

void OpCall::save(const std::string& name, Tensor value) {
  if (value.view().device.type != DeviceType::kCpu) {
    Tensor host = Tensor::host(value.dtype(), value.view().layout);
    backend_.copy(value, host, {});
    backend_.synchronize({});
    value = std::move(host);
  }
  saved_[name] = std::move(value);
}

void OpCall::write(const std::filesystem::path& output) const {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, value] : saved_) tensors.push_back({name, value});
  write_safetensors(output, tensors, {{"flashomni", "run-op " + op_}});
}

}  // namespace flashomni::cli
