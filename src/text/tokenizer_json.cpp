#include "text/tokenizer_json.h"

#include <optional>

#include <fmt/format.h>
#include <simdjson.h>
#include <tsl/robin_map.h>

#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace hadal {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

tl::unexpected<Error> corrupt(std::string message) {
  return fail(ErrorCode::corrupt, std::move(message));
}

// Text from the file for a one-line message: quoted, cut short, without control characters.
std::string quote(std::string_view text) {
  constexpr std::size_t kMaxShown = 60;
  std::string shown = "\"";
  for (std::size_t i = 0; i < text.size();) {
    if (i >= kMaxShown) {
      shown += "...";
      break;
    }
    const std::size_t length = utf8_lead(text.substr(i)).length;
    const auto byte = static_cast<std::uint8_t>(text[i]);
    if (byte < 0x20 || byte == 0x7F) {
      shown += fmt::format("\\u{:04x}", byte);
    } else {
      shown += text.substr(i, length);
    }
    i += length;
  }
  return shown + '"';
}

std::string shown(const element& value) {
  if (value.is_string()) return quote(value.get_string().value_unsafe());
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return simdjson::minify(value);
}

// A field that may be absent.
std::optional<element> field(const object& in, std::string_view name) {
  element value;
  if (in[name].get(value) != simdjson::SUCCESS) return std::nullopt;
  return value;
}

Result<object> object_at(const object& in, std::string_view name, std::string_view path) {
  const auto value = field(in, name);
  if (!value) return corrupt(fmt::format("{} is missing", path));
  object result;
  if (value->get(result) != simdjson::SUCCESS) {
    return corrupt(fmt::format("{} is {}, expected an object", path, shown(*value)));
  }
  return result;
}

Result<array> array_at(const object& in, std::string_view name, std::string_view path) {
  const auto value = field(in, name);
  if (!value) return corrupt(fmt::format("{} is missing", path));
  array result;
  if (value->get(result) != simdjson::SUCCESS) {
    return corrupt(fmt::format("{} is {}, expected an array", path, shown(*value)));
  }
  return result;
}

Result<bool> bool_at(const object& in, std::string_view name, std::string_view path) {
  const auto value = field(in, name);
  if (!value) return false;
  bool result = false;
  if (value->get(result) != simdjson::SUCCESS) {
    return corrupt(fmt::format("{}.{} is {}, expected true or false", path, name, shown(*value)));
  }
  return result;
}

Status expect_false(const object& in, std::string_view name, std::string_view path) {
  HADAL_ASSIGN_OR_RETURN(const bool value, bool_at(in, name, path));
  if (value)
    return fail(ErrorCode::unsupported, fmt::format("{}.{} is true, hadal does only false", path, name));
  return {};
}

// Absent, null or "".
Status expect_none(const object& in, std::string_view name, std::string_view path) {
  const auto value = field(in, name);
  if (!value || value->is_null()) return {};
  if (value->is_string() && value->get_string().value_unsafe().empty()) return {};
  return fail(ErrorCode::unsupported,
              fmt::format("{}{} is {}, hadal does only null", path, name, shown(*value)));
}

Status expect_type(const object& in, std::string_view expected, std::string_view path) {
  const auto type = field(in, "type");
  if (!type) return corrupt(fmt::format("{}.type is missing", path));
  if (!type->is_string() || type->get_string().value_unsafe() != expected) {
    return fail(ErrorCode::unsupported,
                fmt::format("{}.type is {}, hadal does only \"{}\"", path, shown(*type), expected));
  }
  return {};
}

class TokenizerReader {
 public:
  Result<TokenizerDescription> read(const object& root) {
    HADAL_RETURN_IF_ERROR(expect_none(root, "truncation", ""));
    HADAL_RETURN_IF_ERROR(expect_none(root, "padding", ""));
    HADAL_RETURN_IF_ERROR(read_normalizer(root));
    HADAL_RETURN_IF_ERROR(read_pre_tokenizer(root));
    HADAL_RETURN_IF_ERROR(read_decoders(root));
    HADAL_ASSIGN_OR_RETURN(const object model, object_at(root, "model", "model"));
    HADAL_RETURN_IF_ERROR(read_model_options(model));
    HADAL_RETURN_IF_ERROR(read_vocab(model));
    HADAL_RETURN_IF_ERROR(read_added_tokens(root));
    HADAL_RETURN_IF_ERROR(assign_ids());
    HADAL_RETURN_IF_ERROR(find_byte_ids());
    HADAL_RETURN_IF_ERROR(read_merges(model));
    return std::move(result_);
  }

 private:
  static Status read_normalizer(const object& root) {
    const auto value = field(root, "normalizer");
    if (!value || value->is_null()) return {};
    HADAL_ASSIGN_OR_RETURN(const object normalizer, object_at(root, "normalizer", "normalizer"));
    HADAL_RETURN_IF_ERROR(expect_type(normalizer, "Sequence", "normalizer"));
    HADAL_ASSIGN_OR_RETURN(const array steps, array_at(normalizer, "normalizers", "normalizer.normalizers"));
    if (steps.begin() != steps.end()) {
      return fail(ErrorCode::unsupported, "normalizer.normalizers is not empty, hadal does not normalise");
    }
    return {};
  }

  // Split (Regex, Isolated) any number of times, then ByteLevel.
  Status read_pre_tokenizer(const object& root) {
    HADAL_ASSIGN_OR_RETURN(const object pre_tokenizer, object_at(root, "pre_tokenizer", "pre_tokenizer"));
    HADAL_RETURN_IF_ERROR(expect_type(pre_tokenizer, "Sequence", "pre_tokenizer"));
    HADAL_ASSIGN_OR_RETURN(const array steps,
                           array_at(pre_tokenizer, "pretokenizers", "pre_tokenizer.pretokenizers"));
    bool byte_level = false;
    std::size_t i = 0;
    for (const element step_value : steps) {
      const std::string path = fmt::format("pre_tokenizer.pretokenizers[{}]", i++);
      object step;
      if (step_value.get(step) != simdjson::SUCCESS) {
        return corrupt(fmt::format("{} is {}, expected an object", path, shown(step_value)));
      }
      if (byte_level) return fail(ErrorCode::unsupported, fmt::format("{} comes after ByteLevel", path));
      const auto type = field(step, "type");
      byte_level = type && type->is_string() && type->get_string().value_unsafe() == "ByteLevel";
      if (byte_level) {
        HADAL_RETURN_IF_ERROR(expect_false(step, "add_prefix_space", path));
        // Absent, the library takes it for true: a pattern of its own.
        if (!field(step, "use_regex")) {
          return fail(ErrorCode::unsupported,
                      fmt::format("{}.use_regex is missing, hadal does only false", path));
        }
        HADAL_RETURN_IF_ERROR(expect_false(step, "use_regex", path));
      } else {
        HADAL_RETURN_IF_ERROR(read_split(step, path));
      }
    }
    if (!byte_level)
      return fail(ErrorCode::unsupported, "pre_tokenizer.pretokenizers does not end in ByteLevel");
    return {};
  }

  Status read_split(const object& step, const std::string& path) {
    HADAL_RETURN_IF_ERROR(expect_type(step, "Split", path));
    const auto behavior = field(step, "behavior");
    if (!behavior || !behavior->is_string() || behavior->get_string().value_unsafe() != "Isolated") {
      return fail(ErrorCode::unsupported, fmt::format("{}.behavior is {}, hadal does only \"Isolated\"", path,
                                                      behavior ? shown(*behavior) : "missing"));
    }
    HADAL_RETURN_IF_ERROR(expect_false(step, "invert", path));
    HADAL_ASSIGN_OR_RETURN(const object pattern, object_at(step, "pattern", path + ".pattern"));
    const auto regex = field(pattern, "Regex");
    if (!regex || !regex->is_string()) {
      return fail(ErrorCode::unsupported, fmt::format("{}.pattern has no string Regex", path));
    }
    result_.split_patterns.emplace_back(regex->get_string().value_unsafe());
    return {};
  }

  // The post-processor may only be ByteLevel, which moves offsets, not ids.
  static Status read_decoders(const object& root) {
    const auto post_processor = field(root, "post_processor");
    if (post_processor && !post_processor->is_null()) {
      HADAL_ASSIGN_OR_RETURN(const object value, object_at(root, "post_processor", "post_processor"));
      HADAL_RETURN_IF_ERROR(expect_type(value, "ByteLevel", "post_processor"));
    }
    HADAL_ASSIGN_OR_RETURN(const object decoder, object_at(root, "decoder", "decoder"));
    return expect_type(decoder, "ByteLevel", "decoder");
  }

  static Status read_model_options(const object& model) {
    HADAL_RETURN_IF_ERROR(expect_type(model, "BPE", "model"));
    for (const std::string_view name :
         {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
      HADAL_RETURN_IF_ERROR(expect_none(model, name, "model."));
    }
    HADAL_RETURN_IF_ERROR(expect_false(model, "byte_fallback", "model"));
    return expect_false(model, "ignore_merges", "model");
  }

  static Result<std::int64_t> integer(const element& value, std::string_view path) {
    std::int64_t result = 0;
    if (value.get(result) != simdjson::SUCCESS) {
      return corrupt(fmt::format("{} is {}, expected an integer", path, shown(value)));
    }
    return result;
  }

  Status read_vocab(const object& model) {
    HADAL_ASSIGN_OR_RETURN(const object vocab, object_at(model, "vocab", "model.vocab"));
    for (const auto entry : vocab) {
      HADAL_ASSIGN_OR_RETURN(const std::int64_t id, integer(entry.value, "the id of a token in model.vocab"));
      if (!vocab_.emplace(entry.key, id).second) {
        return corrupt(fmt::format("model.vocab has the token {} twice", quote(entry.key)));
      }
      if (vocab_.size() > static_cast<std::size_t>(kMaxTokens)) {
        return fail(ErrorCode::unsupported, fmt::format("model.vocab has more than {} tokens", kMaxTokens));
      }
    }
    return {};
  }

  Status read_added_tokens(const object& root) {
    if (!field(root, "added_tokens")) return {};
    HADAL_ASSIGN_OR_RETURN(const array tokens, array_at(root, "added_tokens", "added_tokens"));
    for (const element value : tokens) {
      const std::string path = fmt::format("added_tokens[{}]", added_.size());
      object token;
      if (value.get(token) != simdjson::SUCCESS) {
        return corrupt(fmt::format("{} is {}, expected an object", path, shown(value)));
      }
      const auto content = field(token, "content");
      if (!content || !content->is_string() || content->get_string().value_unsafe().empty()) {
        return corrupt(fmt::format("{}.content is not a string of at least one character", path));
      }
      const auto id_value = field(token, "id");
      if (!id_value) return corrupt(fmt::format("{}.id is missing", path));
      HADAL_ASSIGN_OR_RETURN(const std::int64_t id, integer(*id_value, path + ".id"));
      for (const std::string_view name : {"single_word", "lstrip", "rstrip"}) {
        HADAL_RETURN_IF_ERROR(expect_false(token, name, path));
      }
      AddedToken added;
      added.content = content->get_string().value_unsafe();
      HADAL_ASSIGN_OR_RETURN(added.normalized, bool_at(token, "normalized", path));
      HADAL_ASSIGN_OR_RETURN(added.special, bool_at(token, "special", path));
      result_.added_tokens.push_back(std::move(added));

      const std::string_view text = content->get_string().value_unsafe();
      if (!added_.emplace(text, id).second) {
        return corrupt(fmt::format("{}: {} was added before", path, quote(text)));
      }
      if (const auto in_vocab = vocab_.find(text); in_vocab == vocab_.end()) {
        ++n_outside_vocab_;
      } else if (in_vocab->second != id) {
        return corrupt(fmt::format("{}.id is {}, but model.vocab gives {} the id {}", path, id, quote(text),
                                   in_vocab->second));
      }
      if (vocab_.size() + n_outside_vocab_ > static_cast<std::size_t>(kMaxTokens)) {
        return fail(ErrorCode::unsupported, fmt::format("more than {} tokens", kMaxTokens));
      }
    }
    return {};
  }

  // Every id from 0 up is one token, so that any id a model may give has its text.
  Status assign_ids() {
    const std::size_t n_tokens = vocab_.size() + n_outside_vocab_;
    result_.token_bytes.resize(n_tokens);
    added_with_id_.assign(n_tokens, false);
    std::vector<bool> taken(n_tokens, false);
    const auto take = [&](std::string_view where, std::string_view text, std::int64_t id) -> Status {
      if (id < 0 || id >= static_cast<std::int64_t>(n_tokens)) {
        return corrupt(fmt::format("{}: the id {} of {} is out of range, {} tokens have the ids 0 to {}",
                                   where, id, quote(text), n_tokens, n_tokens - 1));
      }
      if (taken[static_cast<std::size_t>(id)]) {
        return corrupt(fmt::format("{}: the id {} of {} is another token's too", where, id, quote(text)));
      }
      taken[static_cast<std::size_t>(id)] = true;
      return {};
    };
    for (const auto& [spelling, id] : vocab_) {
      HADAL_RETURN_IF_ERROR(take("model.vocab", spelling, id));
      // A token that is not spelled in the byte alphabet stands for its own text; no merge leads to it.
      auto bytes = bytes_of_spelling(spelling);
      result_.token_bytes[static_cast<std::size_t>(id)] = bytes ? std::move(*bytes) : std::string(spelling);
    }
    for (AddedToken& token : result_.added_tokens) {
      const std::int64_t id = added_.at(token.content);
      if (!vocab_.contains(token.content)) HADAL_RETURN_IF_ERROR(take("added_tokens", token.content, id));
      token.id = static_cast<std::int32_t>(id);
      result_.token_bytes[static_cast<std::size_t>(id)] = token.content;
      added_with_id_[static_cast<std::size_t>(id)] = true;
    }
    return {};
  }

  // Plain text must not be able to spell an added token: neither a byte nor a merge may give its id.
  Status expect_ordinary(std::int32_t id, std::string_view where) const {
    if (!added_with_id_[static_cast<std::size_t>(id)]) return {};
    return fail(ErrorCode::unsupported,
                fmt::format("{} gives {}, which is an added token: plain text could forge it", where,
                            quote(result_.token_bytes[static_cast<std::size_t>(id)])));
  }

  Status find_byte_ids() {
    for (int byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      const std::string spelling = spelling_of_bytes(std::string_view(&c, 1));
      const auto found = vocab_.find(std::string_view(spelling));
      if (found == vocab_.end()) {
        return corrupt(
            fmt::format("model.vocab has no token for the byte 0x{:02X}, spelled \"{}\"", byte, spelling));
      }
      const auto id = static_cast<std::int32_t>(found->second);
      HADAL_RETURN_IF_ERROR(expect_ordinary(id, fmt::format("the byte 0x{:02X}", byte)));
      result_.byte_ids[static_cast<std::size_t>(byte)] = id;
    }
    return {};
  }

  // "a b" or ["a", "b"], by rank.
  Status read_merges(const object& model) {
    HADAL_ASSIGN_OR_RETURN(const array merges, array_at(model, "merges", "model.merges"));
    if (merges.size() > static_cast<std::size_t>(kMaxMerges)) {
      return fail(ErrorCode::unsupported, fmt::format("model.merges has more than {} merges", kMaxMerges));
    }
    result_.merges = Merges(merges.size());
    std::string joined;
    for (const element value : merges) {
      const std::string path = fmt::format("model.merges[{}]", result_.merges.size());
      std::string_view left;
      std::string_view right;
      if (!split_merge(value, left, right)) {
        return corrupt(
            fmt::format("{} is {}, expected \"left right\" or [\"left\", \"right\"]", path, shown(value)));
      }
      joined.assign(left).append(right);
      HADAL_ASSIGN_OR_RETURN(const std::int32_t left_id, vocab_id(left, path));
      HADAL_ASSIGN_OR_RETURN(const std::int32_t right_id, vocab_id(right, path));
      HADAL_ASSIGN_OR_RETURN(const std::int32_t result_id, vocab_id(joined, path));
      HADAL_RETURN_IF_ERROR(expect_ordinary(result_id, path));
      if (!result_.merges.add(left_id, right_id, result_id)) {
        return corrupt(fmt::format("{} is the same pair as model.merges[{}]", path,
                                   result_.merges.rank(left_id, right_id)));
      }
    }
    return {};
  }

  Result<std::int32_t> vocab_id(std::string_view spelling, std::string_view path) const {
    const auto found = vocab_.find(spelling);
    if (found == vocab_.end())
      return corrupt(fmt::format("{}: {} is not in model.vocab", path, quote(spelling)));
    return static_cast<std::int32_t>(found->second);
  }

  static bool split_merge(const element& value, std::string_view& left, std::string_view& right) {
    if (value.is_string()) {
      const std::string_view text = value.get_string().value_unsafe();
      const std::size_t space = text.find(' ');
      if (space == std::string_view::npos) return false;
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      array pair;
      if (value.get(pair) != simdjson::SUCCESS || pair.size() != 2) return false;
      if (pair.at(0).get(left) != simdjson::SUCCESS || pair.at(1).get(right) != simdjson::SUCCESS)
        return false;
    }
    return !left.empty() && !right.empty();
  }

  TokenizerDescription result_;
  tsl::robin_map<std::string_view, std::int64_t>
      vocab_;  // spelling to id; the keys live in the JSON document
  tsl::robin_map<std::string_view, std::int64_t> added_;  // content to id, likewise
  std::size_t n_outside_vocab_ = 0;                       // added tokens that model.vocab has not
  std::vector<bool> added_with_id_;
};

}  // namespace

Result<TokenizerDescription> parse_tokenizer_json(std::string_view json) {
  simdjson::dom::parser parser;
  element document;
  if (const auto error = parser.parse(json.data(), json.size()).get(document); error != simdjson::SUCCESS) {
    return corrupt(fmt::format("not JSON: {}", simdjson::error_message(error)));
  }
  object root;
  if (document.get(root) != simdjson::SUCCESS) return corrupt("not a JSON object");
  return TokenizerReader().read(root);
}

}  // namespace hadal
