// safetensors.cpp -- memory-mapped reading of one file or a sharded set.
// SPDX-License-Identifier: Apache-2.0
#include "flashomni/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <optional>
#include <span>

#include <sys/mman.h>
#include <sys/stat.h>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/safetensors_format.h"

namespace flashomni {
namespace {

using Json = nlohmann::json;

// Far above any real model's header (a 100 000-tensor header is about 10 MB); the reference reader
// has the same limit.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) FO_FAIL(kIo, "safetensors: cannot open %s: %s", path.c_str(), strerror(errno));
    struct stat status {};
    if (::fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) {
      size_ = static_cast<std::size_t>(status.st_size);
      if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    } else {
      data_ = MAP_FAILED;
      errno = EISDIR;
    }
    const int error = errno;
    ::close(fd);
    if (data_ == MAP_FAILED) {
      FO_FAIL(kIo, "safetensors: cannot map %s: %s", path.c_str(), strerror(error));
    }
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// What the header says of one tensor. `dtype` is empty where the library has none for it.
struct Entry {
  std::string dtype_text;
  std::optional<DType> dtype;
  std::vector<index_t> sizes;
  const void* data = nullptr;
  std::uint64_t begin = 0, end = 0;  // of the data section of its file
};
using Entries = std::map<std::string, Entry, std::less<>>;

[[noreturn]] void malformed(const std::filesystem::path& path, const std::string& what) {
  FO_FAIL(kIo, "safetensors: %s: %s", path.c_str(), what.c_str());
}

Json parse_header(const std::filesystem::path& path, std::span<const std::byte> bytes,
                  std::size_t& header_bytes) {
  if (bytes.size() < 8) {
    malformed(path,
              format("the file has %zu bytes, too few for the 8-byte header length", bytes.size()));
  }
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  if (length > kMaxHeaderBytes || length > bytes.size() - 8) {
    malformed(path, format("the header claims %llu bytes, the file has %zu after its length field",
                           static_cast<unsigned long long>(length), bytes.size() - 8));
  }
  header_bytes = static_cast<std::size_t>(length);
  const char* text = reinterpret_cast<const char*>(bytes.data() + 8);
  const Json header = Json::parse(text, text + header_bytes, nullptr, false);
  if (!header.is_object()) malformed(path, "the header is not a JSON object");
  return header;
}

bool is_index_array(const Json& value) {
  if (!value.is_array()) return false;
  for (const Json& item : value) {
    if (!item.is_number_unsigned()) return false;
  }
  return true;
}

// The number of elements, or nothing if it does not fit 63 bits.
std::optional<std::uint64_t> count_elements(const std::vector<index_t>& sizes) {
  std::uint64_t count = 1;
  for (const index_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(count, static_cast<std::uint64_t>(size), &count)) {
      return std::nullopt;
    }
  }
  return count;
}

Entry parse_entry(const std::filesystem::path& path, const std::string& name, const Json& value,
                  std::span<const std::byte> data) {
  const char* n = name.c_str();
  const bool complete = value.is_object() && value.contains("dtype") && value.contains("shape") &&
                        value.contains("data_offsets");
  if (!complete || !value["dtype"].is_string() || !is_index_array(value["shape"]) ||
      !is_index_array(value["data_offsets"]) || value["data_offsets"].size() != 2) {
    malformed(path, format("tensor %s needs a dtype, a shape and two data_offsets", n));
  }
  Entry entry;
  entry.dtype_text = value["dtype"].get<std::string>();
  entry.dtype = safetensors_dtype(entry.dtype_text);
  entry.sizes = value["shape"].get<std::vector<index_t>>();
  const auto begin = value["data_offsets"][0].get<std::uint64_t>();
  const auto end = value["data_offsets"][1].get<std::uint64_t>();
  if (begin > end || end > data.size()) {
    malformed(path, format("tensor %s has data_offsets %llu to %llu, the file has %zu bytes of "
                           "data (truncated?)",
                           n, static_cast<unsigned long long>(begin),
                           static_cast<unsigned long long>(end), data.size()));
  }
  const auto count = count_elements(entry.sizes);
  if (!count) malformed(path, format("tensor %s has a shape too large for any file", n));
  const std::uint64_t item = entry.dtype ? size_in_bytes(*entry.dtype) : 0;
  std::uint64_t bytes = 0;
  if (item > 0 && (__builtin_mul_overflow(*count, item, &bytes) || bytes != end - begin)) {
    malformed(path, format("tensor %s has %llu bytes of data, its shape and dtype %s need %llu", n,
                           static_cast<unsigned long long>(end - begin), entry.dtype_text.c_str(),
                           static_cast<unsigned long long>(bytes)));
  }
  entry.data = data.data() + begin;
  entry.begin = begin;
  entry.end = end;
  return entry;
}

void check_overlap(const std::filesystem::path& path, const Entries& entries) {
  std::vector<const Entries::value_type*> by_offset;
  for (const auto& item : entries) by_offset.push_back(&item);
  const auto extent = [](const auto* item) {
    return std::pair(item->second.begin, item->second.end);
  };
  std::ranges::sort(by_offset, {}, extent);
  for (std::size_t i = 1; i < by_offset.size(); ++i) {
    if (by_offset[i]->second.begin < by_offset[i - 1]->second.end) {
      malformed(path, format("the data of tensors %s and %s overlap",
                             by_offset[i - 1]->first.c_str(), by_offset[i]->first.c_str()));
    }
  }
}

Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) FO_FAIL(kIo, "safetensors: cannot open %s", path.c_str());
  Json json = Json::parse(file, nullptr, false);
  if (json.is_discarded()) malformed(path, "the index is not JSON");
  return json;
}

bool is_index_file(const std::filesystem::path& path) {
  return path.string().ends_with(".safetensors.index.json");
}

}  // namespace

struct SafetensorsFile::Impl {
  std::filesystem::path path;
  std::vector<MappedFile> files;
  Entries entries;
  std::map<std::string, std::string> metadata;
  std::mutex copies_mutex;
  std::map<std::string, Tensor> copies;  // of tensors that lie misaligned in the file

  void add_file(const std::filesystem::path& file_path);
  void add_shards();
  const void* aligned_data(std::string_view name, const Entry& entry);
};

void SafetensorsFile::Impl::add_file(const std::filesystem::path& file_path) {
  files.emplace_back(file_path);
  const std::span<const std::byte> bytes = files.back().bytes();
  std::size_t header_bytes = 0;
  const Json header = parse_header(file_path, bytes, header_bytes);
  const auto data = bytes.subspan(8 + header_bytes);
  Entries of_file;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) malformed(file_path, "__metadata__ is not a JSON object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) malformed(file_path, "__metadata__." + key + " is not a string");
        metadata[key] = text.get<std::string>();
      }
    } else {
      of_file.emplace(name, parse_entry(file_path, name, value, data));
    }
  }
  check_overlap(file_path, of_file);
  entries.merge(of_file);
  if (!of_file.empty()) {
    malformed(file_path, "tensor " + of_file.begin()->first + " is in another shard as well");
  }
}

void SafetensorsFile::Impl::add_shards() {
  const Json index = read_json(path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    malformed(path, "the index has no weight_map object");
  }
  std::map<std::string, std::vector<std::string>> names_of_shard;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) malformed(path, "the weight_map of " + name + " is not a file name");
    names_of_shard[shard.get<std::string>()].push_back(name);
  }
  for (const auto& [shard, names] : names_of_shard) {
    // A shard lies beside its index; anything else in the name would read files elsewhere.
    if (std::filesystem::path(shard).filename() != shard) {
      malformed(path, "shard " + shard + " is not a plain file name");
    }
    add_file(path.parent_path() / shard);
    for (const std::string& name : names) {
      if (!entries.contains(name)) malformed(path, "tensor " + name + " is not in " + shard);
    }
  }
}

// The format does not ask writers to align; readers of a view may rely on it.
const void* SafetensorsFile::Impl::aligned_data(std::string_view name, const Entry& entry) {
  const auto item = static_cast<std::uintptr_t>(size_in_bytes(*entry.dtype));
  if (reinterpret_cast<std::uintptr_t>(entry.data) % item == 0) return entry.data;
  const std::lock_guard lock(copies_mutex);
  Tensor& copy = copies[std::string(name)];
  if (!copy) {
    const std::uint64_t bytes = entry.end - entry.begin;
    copy = Tensor::host(DType::kU8, {static_cast<index_t>(bytes)});
    std::copy_n(static_cast<const std::byte*>(entry.data), bytes, copy.as<std::byte>());
  }
  return copy.as<void>();
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  if (is_index_file(path)) {
    impl_->add_shards();
  } else {
    impl_->add_file(path);
  }
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

bool SafetensorsFile::contains(std::string_view name) const {
  return impl_->entries.contains(name);
}

ConstTensorView SafetensorsFile::tensor(std::string_view name) const {
  const auto found = impl_->entries.find(name);
  const std::string n(name);
  if (found == impl_->entries.end()) {
    FO_FAIL(kIo, "safetensors: %s has no tensor %s", impl_->path.c_str(), n.c_str());
  }
  const Entry& entry = found->second;
  if (!entry.dtype) {
    FO_FAIL(kUnsupported,
            "safetensors: tensor %s of %s has dtype %s, supported are F32, BF16, F16, U8, BOOL, "
            "I32 and I64",
            n.c_str(), impl_->path.c_str(), entry.dtype_text.c_str());
  }
  if (entry.sizes.size() > kMaxRank) {
    FO_FAIL(kUnsupported, "safetensors: tensor %s of %s has %zu axes, at most %d are supported",
            n.c_str(), impl_->path.c_str(), entry.sizes.size(), kMaxRank);
  }
  return {impl_->aligned_data(name, entry), *entry.dtype,
          Layout(std::span<const index_t>(entry.sizes))};
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : impl_->entries) names.push_back(name);
  return names;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->metadata;
}

}  // namespace flashomni
