// A small tokenizer.json to test with: the 256 bytes (byte b has id b), some merges from id 256 up, and some
// added tokens after them, as a JSON value that a test can change before it is read.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "text/byte_alphabet.h"

namespace hadal {

inline const std::vector<std::string>& deepseek_patterns() {
  static const std::vector<std::string> patterns = {
      R"(\p{N}{1,3})",
      "[一-龥぀-ゟ゠-ヿ]+",
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^)"
      "\r\n"
      R"(\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[)"
      "\r\n"
      R"(]*|\s*[)"
      "\r\n"
      R"(]+|\s+(?!\S)|\s+)",
  };
  return patterns;
}

struct FixtureToken {
  std::string content;
  bool normalized;
  bool special;
};

// `merges` are pairs of byte strings.
inline nlohmann::json tokenizer_json(const std::vector<std::pair<std::string, std::string>>& merges = {},
                                     const std::vector<FixtureToken>& added = {},
                                     const std::vector<std::string>& patterns = deepseek_patterns()) {
  nlohmann::json vocab = nlohmann::json::object();
  int next_id = 0;
  for (; next_id < 256; ++next_id)
    vocab[spelling_of_bytes(std::string(1, static_cast<char>(next_id)))] = next_id;
  nlohmann::json merge_list = nlohmann::json::array();
  for (const auto& [left, right] : merges) {
    merge_list.push_back(spelling_of_bytes(left) + " " + spelling_of_bytes(right));
    vocab[spelling_of_bytes(left + right)] = next_id++;
  }
  nlohmann::json added_list = nlohmann::json::array();
  for (const FixtureToken& token : added) {
    added_list.push_back({{"id", next_id++},
                          {"content", token.content},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false},
                          {"normalized", token.normalized},
                          {"special", token.special}});
  }
  nlohmann::json steps = nlohmann::json::array();
  for (const std::string& pattern : patterns) {
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back(
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}});
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added_list},
          {"normalizer", {{"type", "Sequence"}, {"normalizers", nlohmann::json::array()}}},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
          {"post_processor", {{"type", "ByteLevel"}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", merge_list}}}};
}

}  // namespace hadal
