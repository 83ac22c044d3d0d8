#include "machine.h"

#include <fstream>
#include <string_view>
#include <system_error>
#include <thread>

namespace flashomni::cli {
namespace {

// The text after `key` and a separator on the first line of `file` that starts with `key`.
std::string field_of(const std::filesystem::path& file, std::string_view key, char separator) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    std::string value = line.substr(at + 1);
    value.erase(0, value.find_first_not_of(" \t\""));
    value.erase(value.find_last_not_of(" \t\"") + 1);
    return value;
  }
  return {};
}

constexpr const char* architecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown architecture";
#endif
}

}  // namespace

std::string cpu_model() {
  const std::string name = field_of("/proc/cpuinfo", "model name", ':');
  return name.empty() ? architecture() : name;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) features.push_back("avx2");
  if (__builtin_cpu_supports("fma")) features.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.push_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) features.push_back("avx512bw");
  if (__builtin_cpu_supports("avx512bf16")) features.push_back("avx512_bf16");
#endif
  return features;
}

std::vector<std::string> gpu_models() {
  std::vector<std::string> models;
  std::error_code none;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", none)) {
    models.push_back(field_of(gpu.path() / "information", "Model", ':'));
  }
  return models;
}

std::string system_name() {
  const std::string name = field_of("/etc/os-release", "PRETTY_NAME", '=');
  return name.empty() ? "unknown system" : name;
}

bool has_native_bf16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

int available_cores() { return static_cast<int>(std::thread::hardware_concurrency()); }

std::filesystem::path find_shipped(const std::filesystem::path& relative) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  // build/<preset>/flashomni lies two folders below the sources, PREFIX/bin/flashomni beside share.
  for (const fs::path& root :
       {fs::path("."), program, program / "../..", program / "../share/flashomni"}) {
    const fs::path candidate = (root / relative).lexically_normal();
    if (fs::exists(candidate, ignored)) return candidate;
  }
  return {};
}

}  // namespace flashomni::cli
