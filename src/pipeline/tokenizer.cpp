// tokenizer.cpp -- whole-word vocabulary.
// SPDX-License-Identifier: Apache-2.0
#include "pipeline/tokenizer.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "pipeline/json_file.h"

namespace flashomni {
namespace {

// How many words of the vocabulary a warning proposes at most.
constexpr std::size_t kProposals = 3;

std::vector<std::string> split_words(std::string_view prompt) {
  std::vector<std::string> words;
  bool inside = false;
  for (char c : prompt) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    const bool kept = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '\'' || c == '-';
    if (kept && !inside) words.emplace_back();
    if (kept) words.back().push_back(c);
    inside = kept;
  }
  return words;
}

// Levenshtein's: insertions, deletions and replacements.
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

WordTokenizer WordTokenizer::load(const std::filesystem::path& directory) {
  const auto path = directory / "tokenizer_config.json";
  const nlohmann::json config = read_json_file(path);
  const auto type = json_value<std::string>(path, config, "type");
  if (type != "words") {
    FO_FAIL(kUnsupported, "pipeline: tokenizer of type %s, supported is words", type.c_str());
  }
  WordTokenizer tokenizer;
  tokenizer.max_length_ = json_value<int>(path, config, "max_length");
  tokenizer.pad_ = json_value<int>(path, config, "pad");
  tokenizer.unknown_ = json_value<int>(path, config, "unk");
  tokenizer.null_prompt_ = json_value<std::vector<int>>(path, config, "null_prompt");
  const auto vocabulary = directory / "vocab.json";
  const nlohmann::json words = read_json_file(vocabulary);
  FO_CHECK(words.is_array(), "pipeline: %s is not a list of words", vocabulary.c_str());
  for (const nlohmann::json& word : words) {
    FO_CHECK(word.is_string(), "pipeline: %s holds %s, which is not a word", vocabulary.c_str(),
             word.dump().c_str());
    const int id = static_cast<int>(tokenizer.ids_.size());
    const bool is_new = tokenizer.ids_.emplace(word.get<std::string>(), id).second;
    FO_CHECK(is_new, "pipeline: %s holds %s twice", vocabulary.c_str(), word.dump().c_str());
  }
  const int count = static_cast<int>(tokenizer.ids_.size());
  const auto is_id = [&](int id) { return id >= 0 && id < count; };
  FO_CHECK(tokenizer.max_length_ >= 1 && is_id(tokenizer.pad_) && is_id(tokenizer.unknown_) &&
               std::ranges::all_of(tokenizer.null_prompt_, is_id),
           "pipeline: %s: pad, unk and null_prompt must be ids below %d, max_length 1 or more",
           path.c_str(), count);
  return tokenizer;
}

TokenizedPrompt WordTokenizer::encode(std::string_view prompt) const {
  const std::vector<std::string> words = split_words(prompt);
  if (words.empty()) return {pad(null_prompt_), {}};
  TokenizedPrompt result;
  const auto room = static_cast<std::size_t>(max_length_);
  for (std::size_t i = 0; i < std::min(words.size(), room); ++i) {
    const auto found = ids_.find(words[i]);
    result.ids.push_back(found == ids_.end() ? unknown_ : found->second);
    if (found == ids_.end()) result.warnings.push_back(unknown_word_warning(words[i]));
  }
  if (words.size() > room) {
    result.warnings.push_back(
        format("the prompt has %zu words, those after the first %zu (\"%s\") "
               "were left out",
               words.size(), room, words[room - 1].c_str()));
  }
  result.ids = pad(std::move(result.ids));
  return result;
}

std::vector<int> WordTokenizer::pad(std::vector<int> ids) const {
  const int count = static_cast<int>(ids_.size());
  FO_CHECK(ids.size() <= static_cast<std::size_t>(max_length_),
           "pipeline: %zu token ids, at most %d are allowed", ids.size(), max_length_);
  for (const int id : ids) {
    FO_CHECK(id >= 0 && id < count, "pipeline: token id %d, must be 0 to %d", id, count - 1);
  }
  ids.resize(static_cast<std::size_t>(max_length_), pad_);
  return ids;
}

std::string WordTokenizer::unknown_word_warning(const std::string& word) const {
  int nearest = static_cast<int>(word.size());  // farther than this has nothing in common
  std::vector<std::string> proposals;
  for (const auto& [known, id] : ids_) {
    if (known.starts_with('<')) continue;  // <pad> and the like
    const int distance = edit_distance(word, known);
    if (distance < nearest) proposals.clear();
    nearest = std::min(nearest, distance);
    if (distance == nearest && distance < static_cast<int>(word.size())) proposals.push_back(known);
  }
  std::string text = "the model does not know the word \"" + word + "\"";
  for (std::size_t i = 0; i < std::min(proposals.size(), kProposals); ++i) {
    text += (i == 0 ? "; nearest known: " : ", ") + proposals[i];
  }
  return text;
}

}  // namespace flashomni
