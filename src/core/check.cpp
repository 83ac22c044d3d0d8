#include "core/check.h"

#include <cstdarg>
#include <cstdio>

namespace flashomni {

std::string format(const char* pattern, ...) {
  std::va_list arguments, copy;
  va_start(arguments, pattern);
  va_copy(copy, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, copy);
  va_end(copy);
  std::string text(static_cast<std::size_t>(length), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  va_end(arguments);
  return text;
}

void throw_error(ErrorCode code, const std::string& message) { throw Error(code, message); }

}  // namespace flashomni
