// safetensors_writer.cpp -- header, then the tensors' bytes, wide dtypes first.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>

#include <nlohmann/json.hpp>

#include "flashomni/safetensors.h"

#include "core/check.h"
#include "io/atomic_write.h"
#include "io/safetensors_format.h"

namespace flashomni {

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<std::string_view> parts(2);
  // The format allows no gaps; falling element sizes keep every tensor aligned to its own.
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::ranges::stable_sort(order, std::greater{}, [](const NamedTensor* tensor) {
    return size_in_bytes(tensor->value.dtype);
  });
  index_t offset = 0;
  for (const NamedTensor* next : order) {
    const NamedTensor& tensor = *next;
    const char* name = tensor.name.c_str();
    const ConstTensorView& value = tensor.value;
    FO_CHECK(!header.contains(tensor.name) && tensor.name != "__metadata__",
             "write_safetensors: %s is given twice or is not a name for a tensor", name);
    FO_CHECK(value.device.type == DeviceType::kCpu && value.layout.is_contiguous(),
             "write_safetensors: %s is not contiguous host memory", name);
    const index_t bytes = value.layout.num_elements() * size_in_bytes(value.dtype);
    const std::span<const index_t> sizes(value.layout.sizes.data(), value.layout.rank);
    header[tensor.name] = {{"dtype", safetensors_dtype_name(value.dtype)},
                           {"shape", std::vector<index_t>(sizes.begin(), sizes.end())},
                           {"data_offsets", {offset, offset + bytes}}};
    parts.emplace_back(static_cast<const char*>(value.data), static_cast<std::size_t>(bytes));
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the data begins aligned to 8 bytes
  std::string length;
  for (int i = 0; i < 8; ++i) length.push_back(static_cast<char>(text.size() >> 8 * i & 0xff));
  parts[0] = length;
  parts[1] = text;
  write_whole("write_safetensors", path, parts);
}

}  // namespace flashomni
