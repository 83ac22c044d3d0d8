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

std::optional<int> OptionReader::integer(std::string_view option, int minimum, int maximum) const {
  const std::string* text = find(option);
  if (!text) return std::nullopt;
  int value = 0;
  const char* end = text->data() + text->size();
  const auto result = std::from_chars(text->data(), end, value);
  const bool parsed = result.ec == std::errc() && result.ptr == end;
  if (!parsed || value < minimum || value > maximum) {
    reject(option, format("an integer from %d to %d", minimum, maximum));
  }
  return value;
}

PolicyScope OptionReader::scope(std::string_view option, PolicyScope absent) const {
  const std::string* text = find(option);
  if (!text) return absent;
  if (*text != "head" && *text != "layer") reject(option, "head or layer");
  return *text == "head" ? PolicyScope::kHead : PolicyScope::kLayer;
}

TokenGrid OptionReader::size(std::string_view option, const TokenGrid& absent) const {
  const std::string* text = find(option);
  if (!text) return absent;
  std::vector<int> sizes;
  const char *at = text->data(), *end = at + text->size();
  while (at <= end && sizes.size() <= 3) {
    const auto result = std::from_chars(at, end, sizes.emplace_back());
    if (result.ec != std::errc() || sizes.back() < 1) break;
    if (result.ptr == end && sizes.size() == 2) return {1, sizes[0], sizes[1]};
    if (result.ptr == end && sizes.size() == 3) return {sizes[0], sizes[1], sizes[2]};
    if (result.ptr == end || *result.ptr != 'x') break;
    at = result.ptr + 1;
  }
  reject(option, "rows x columns or frames x rows x columns, such as 8x8 or 4x8x8");
}

void OptionReader::reject(std::string_view option, std::string_view allowed) const {
  const std::string* text = find(option);
  FO_FAIL(kInvalidArgument, "policy %.*s: %.*s is \"%s\", must be %.*s",
          static_cast<int>(policy_.size()), policy_.data(), static_cast<int>(option.size()),
          option.data(), text ? text->c_str() : "", static_cast<int>(allowed.size()),
          allowed.data());
}

}  // namespace flashomni
