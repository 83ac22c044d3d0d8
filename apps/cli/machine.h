// machine.h -- what the tool knows of the machine it runs on.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace flashomni::cli {

std::string cpu_model();                  // "AMD EPYC 9554 64-Core Processor", or the architecture
std::vector<std::string> cpu_features();  // of those that some kernel asks for
std::string system_name();                // "Debian GNU/Linux 12 (bookworm)"
std::vector<std::string> gpu_models();    // NVIDIA's, as the driver names them
bool has_native_bf16();                   // AVX512_BF16
int available_cores();

// A file or folder that ships with the tool: ./RELATIVE, then beside the executable, then the
// source tree of a build folder, then the install prefix. Empty if it is nowhere.
std::filesystem::path find_shipped(const std::filesystem::path& relative);

}  // namespace flashomni::cli
