// tokenizer.h -- words to ids, for text encoders with a vocabulary of whole words.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flashomni {

struct TokenizedPrompt {
  std::vector<int> ids;               // max_length of them, padded
  std::vector<std::string> warnings;  // unknown words, words that did not fit
};

// Lower-cases, takes everything outside [a-z0-9'-] for a space, splits, and looks words up.
class WordTokenizer {
 public:
  // `directory` holds tokenizer_config.json and vocab.json, the words in the order of their ids.
  static WordTokenizer load(const std::filesystem::path& directory);

  int max_length() const { return max_length_; }
  // A prompt without any word is the null prompt that the model learned to mean "anything".
  TokenizedPrompt encode(std::string_view prompt) const;
  // `ids` padded to max_length. Throws kInvalidArgument if they are too many or not ids.
  std::vector<int> pad(std::vector<int> ids) const;

 private:
  std::string unknown_word_warning(const std::string& word) const;

  std::map<std::string, int, std::less<>> ids_;
  std::vector<int> null_prompt_;
  int max_length_ = 0, pad_ = 0, unknown_ = 0;
};

}  // namespace flashomni
