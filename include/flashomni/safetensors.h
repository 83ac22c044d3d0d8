// safetensors.h -- read and write the safetensors format.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flashomni/tensor.h"

namespace flashomni {

// A memory-mapped file, or the shards of an index (`*.safetensors.index.json`). Views are valid
// while the object lives, and aligned for their dtype (a tensor that lies misaligned in its file is
// copied when first asked for). Tensors of more than four axes are rejected when asked for.
// Throws kIo naming the file and what is wrong with it.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  bool contains(std::string_view name) const;
  // Throws kIo if absent, kUnsupported for a dtype the library does not know.
  ConstTensorView tensor(std::string_view name) const;
  std::vector<std::string> names() const;  // sorted
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct NamedTensor {
  std::string name;
  ConstTensorView value;  // contiguous host memory
};
// Writes to a temporary file beside `path` and renames it, so that nothing is half-written.
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace flashomni
