// atomic_write.cpp -- write to a temporary file, then rename.
// SPDX-License-Identifier: Apache-2.0
#include "io/atomic_write.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include <sys/stat.h>

#include "core/check.h"

namespace flashomni {
namespace {

// A temporary file that is gone unless it was renamed.
struct TemporaryFile {
  explicit TemporaryFile(std::string pattern)
      : name(std::move(pattern)), fd(mkstemp(name.data())) {}
  ~TemporaryFile() {
    if (fd >= 0) ::close(fd);
    if (fd >= 0 && !renamed) ::unlink(name.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  bool write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd, bytes.data(), bytes.size());
      if (written < 0 && errno != EINTR) return false;
      if (written > 0) bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    return true;
  }

  std::string name;
  int fd;
  bool renamed = false;
};

}  // namespace

void write_whole(std::string_view caller, const std::filesystem::path& path,
                 std::span<const std::string_view> parts) {
  TemporaryFile file(path.string() + ".XXXXXX");
  bool ok = file.fd >= 0;
  for (const std::string_view part : parts) ok = ok && file.write(part);
  // mkstemp makes the file private; pictures and tensors are as public as other new files.
  ok = ok && ::fchmod(file.fd, 0644) == 0 && ::rename(file.name.c_str(), path.c_str()) == 0;
  if (!ok) {
    FO_FAIL(kIo, "%.*s: cannot write %s: %s", static_cast<int>(caller.size()), caller.data(),
            path.c_str(), std::strerror(errno));
  }
  file.renamed = true;
}

}  // namespace flashomni
