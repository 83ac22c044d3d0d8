// options.cpp -- option values of policies, from text.
// SPDX-License-Identifier: Apache-2.0
#include "policy/options.h"

#include <charconv>

#include "core/check.h"

namespace flashomni {

const std::string* OptionReader::find(std::string_view option) const {
  const auto entry = options_.find(std::string(option));
  return entry == options_.end() ? nullptr : &entry->second;
}

std::optional<double> OptionReader::number(std::string_view option, double minimum,
                                           double maximum) const {
  const std::string* text = find(option);
  if (!text) return std::nullopt;
  double value = 0;
  const char* end = text->data() + text->size();
  const auto result = std::from_chars(text->data(), end, value);
  const bool parsed = result.ec == std::errc() && result.ptr == end;
  // Written so that NaN is rejected.
  if (!parsed || !(value >= minimum && value <= maximum)) {
    reject(option, format("a number from %g to %g", minimum, maximum));
  }
  return value;
}

bool OptionReader::flag(std::string_view option, bool absent) const {
  const std::string* text = find(option);
  if (!text) return absent;
  if (*text == "1" || *text == "true") return true;
  if (*text == "0" || *text == "false") return false;
  reject(option, "1, 0, true or false");
}

void OptionReader::reject(std::string_view option, std::string_view allowed) const {
  const std::string* text = find(option);
  FO_FAIL(kInvalidArgument, "policy %.*s: %.*s is \"%s\", must be %.*s",
          static_cast<int>(policy_.size()), policy_.data(), static_cast<int>(option.size()),
          option.data(), text ? text->c_str() : "", static_cast<int>(allowed.size()),
          allowed.data());
}

}  // namespace flashomni
