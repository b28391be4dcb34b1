#include "text/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <hadal/tokenizer.h>

#include "tokenizer_fixture.h"

namespace hadal {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// Byte b has the id b, 256 "ab", 257 "abc", 258 "<x>" added.
json small() {
  return tokenizer_json({{"a", "b"}, {"ab", "c"}}, {{"<x>", true, false}});
}

TEST(TokenizerJson, ReadsMergesOfBothForms) {
  json pairs = small();
  pairs["model"]["merges"] = json::array({json::array({"a", "b"}), json::array({"ab", "c"})});
  for (const json& file : {small(), pairs}) {
    const auto tokenizer = Tokenizer::from_json(file.dump());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message();
    EXPECT_EQ(tokenizer->encode("abcab").value(), std::vector<std::int32_t>({257, 256}));
  }
}

TEST(TokenizerJson, TakesWhatChangesNothing) {
  const std::vector<std::string> patches = {
      R"([{"op":"replace","path":"/normalizer","value":null}])",
      R"([{"op":"remove","path":"/normalizer"}])",
      R"([{"op":"remove","path":"/truncation"},{"op":"remove","path":"/padding"}])",
      R"([{"op":"replace","path":"/post_processor","value":null}])",
      R"([{"op":"remove","path":"/model/dropout"}])",
      R"([{"op":"replace","path":"/model/continuing_subword_prefix","value":""}])",
      R"([{"op":"remove","path":"/model/byte_fallback"}])",
      R"([{"op":"remove","path":"/added_tokens/0/special"}])",
  };
  for (const std::string& patch : patches) {
    const auto parsed = parse_tokenizer_json(small().patch(json::parse(patch)).dump());
    EXPECT_TRUE(parsed) << patch << ": " << parsed.error().message();
  }
  // A token outside the byte alphabet stands for its own text.
  const auto odd = Tokenizer::from_json(
      small().patch(json::parse(R"([{"op":"add","path":"/model/vocab/a b","value":259}])")).dump());
  ASSERT_TRUE(odd) << odd.error().message();
  EXPECT_EQ(odd->token_bytes(259), "a b");
}

struct Malformed {
  const char* patch;  // JSON patch on small()
  ErrorCode code;
  const char* message;
};

constexpr ErrorCode kCorrupt = ErrorCode::corrupt;
constexpr ErrorCode kUnsupported = ErrorCode::unsupported;

const Malformed kMalformed[] = {
    {R"([{"op":"remove","path":"/model"}])", kCorrupt, "model is missing"},
    {R"([{"op":"replace","path":"/model","value":[]}])", kCorrupt, "model is an array, expected an object"},
    {R"([{"op":"replace","path":"/model/type","value":"Unigram"}])", kUnsupported,
     R"(model.type is "Unigram", hadal does only "BPE")"},
    {R"([{"op":"remove","path":"/model/type"}])", kCorrupt, "model.type is missing"},
    {R"([{"op":"replace","path":"/model/byte_fallback","value":true}])", kUnsupported,
     "model.byte_fallback is true, hadal does only false"},
    {R"([{"op":"add","path":"/model/ignore_merges","value":true}])", kUnsupported,
     "model.ignore_merges is true"},
    {R"([{"op":"replace","path":"/model/byte_fallback","value":"no"}])", kCorrupt,
     R"(model.byte_fallback is "no", expected true or false)"},
    {R"([{"op":"replace","path":"/model/dropout","value":0.5}])", kUnsupported,
     "model.dropout is 0.5, hadal does only null"},
    {R"([{"op":"replace","path":"/model/unk_token","value":"<unk>"}])", kUnsupported,
     R"(model.unk_token is "<unk>", hadal does only null)"},
    {R"([{"op":"replace","path":"/model/continuing_subword_prefix","value":"\n##"}])", kUnsupported,
     R"(model.continuing_subword_prefix is "\u000a##")"},
    {R"([{"op":"replace","path":"/truncation","value":{}}])", kUnsupported, "truncation is an object"},
    {R"([{"op":"replace","path":"/padding","value":{}}])", kUnsupported, "padding is an object"},

    {R"([{"op":"remove","path":"/model/vocab"}])", kCorrupt, "model.vocab is missing"},
    {R"([{"op":"replace","path":"/model/vocab","value":["a"]}])", kCorrupt,
     "model.vocab is an array, expected an object"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":-1}])", kCorrupt,
     R"(model.vocab: the id -1 of "a" is out of range, 259 tokens have the ids 0 to 258)"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":259}])", kCorrupt,
     R"(the id 259 of "a" is out of range)"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":4294967393}])", kCorrupt, "the id 4294967393 of"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":18446744073709551615}])", kCorrupt,
     "expected an integer"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":1.5}])", kCorrupt,
     "the id of a token in model.vocab is 1.5, expected an integer"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":"7"}])", kCorrupt, "expected an integer"},
    {R"([{"op":"replace","path":"/model/vocab/a","value":98}])", kCorrupt, "is another token's too"},
    {R"([{"op":"remove","path":"/model/vocab/Ġ"},{"op":"add","path":"/model/vocab/ĠĠ","value":32}])",
     kCorrupt, R"(model.vocab has no token for the byte 0x20, spelled "Ġ")"},

    {R"([{"op":"remove","path":"/model/merges"}])", kCorrupt, "model.merges is missing"},
    {R"([{"op":"replace","path":"/model/merges/1","value":"abc"}])", kCorrupt,
     R"(model.merges[1] is "abc", expected "left right" or ["left", "right"])"},
    {R"([{"op":"replace","path":"/model/merges/1","value":7}])", kCorrupt, "model.merges[1] is 7, expected"},
    {R"([{"op":"replace","path":"/model/merges/1","value":["a"]}])", kCorrupt,
     "model.merges[1] is an array, expected"},
    {R"([{"op":"replace","path":"/model/merges/1","value":["a",1]}])", kCorrupt,
     "model.merges[1] is an array, expected"},
    {R"([{"op":"replace","path":"/model/merges/1","value":" a"}])", kCorrupt,
     "model.merges[1] is \" a\", expected"},
    {R"([{"op":"replace","path":"/model/merges/1","value":"a zz"}])", kCorrupt,
     R"(model.merges[1]: "zz" is not in model.vocab)"},
    {R"([{"op":"replace","path":"/model/merges/1","value":"a c"}])", kCorrupt,
     R"(model.merges[1]: "ac" is not in model.vocab)"},
    {R"([{"op":"replace","path":"/model/merges/1","value":"a b"}])", kCorrupt,
     "model.merges[1] is the same pair as model.merges[0]"},

    {R"([{"op":"replace","path":"/added_tokens","value":{}}])", kCorrupt,
     "added_tokens is an object, expected an array"},
    {R"([{"op":"replace","path":"/added_tokens/0","value":"x"}])", kCorrupt,
     R"(added_tokens[0] is "x", expected an object)"},
    {R"([{"op":"remove","path":"/added_tokens/0/content"}])", kCorrupt,
     "added_tokens[0].content is not a string"},
    {R"([{"op":"replace","path":"/added_tokens/0/content","value":""}])", kCorrupt,
     "added_tokens[0].content is not a string"},
    {R"([{"op":"remove","path":"/added_tokens/0/id"}])", kCorrupt, "added_tokens[0].id is missing"},
    {R"([{"op":"replace","path":"/added_tokens/0/id","value":null}])", kCorrupt,
     "added_tokens[0].id is null, expected an integer"},
    {R"([{"op":"replace","path":"/added_tokens/0/id","value":5000}])", kCorrupt,
     R"(added_tokens: the id 5000 of "<x>" is out of range, 259 tokens have the ids 0 to 258)"},
    {R"([{"op":"replace","path":"/added_tokens/0/id","value":7}])", kCorrupt,
     R"(added_tokens: the id 7 of "<x>" is another token's too)"},
    {R"([{"op":"copy","from":"/added_tokens/0","path":"/added_tokens/1"}])", kCorrupt,
     R"(added_tokens[1]: "<x>" was added before)"},
    {R"([{"op":"replace","path":"/added_tokens/0/content","value":"ab"},
         {"op":"replace","path":"/added_tokens/0/id","value":3}])",
     kCorrupt, R"(added_tokens[0].id is 3, but model.vocab gives "ab" the id 256)"},
    {R"([{"op":"replace","path":"/added_tokens/0/content","value":"ab"},
         {"op":"replace","path":"/added_tokens/0/id","value":256}])",
     kUnsupported, R"(model.merges[0] gives "ab", which is an added token: plain text could forge it)"},
    {R"([{"op":"replace","path":"/added_tokens/0/content","value":"z"},
         {"op":"replace","path":"/added_tokens/0/id","value":122}])",
     kUnsupported, R"(the byte 0x7A gives "z", which is an added token)"},
    {R"([{"op":"replace","path":"/added_tokens/0/lstrip","value":true}])", kUnsupported,
     "added_tokens[0].lstrip is true"},
    {R"([{"op":"replace","path":"/added_tokens/0/rstrip","value":true}])", kUnsupported,
     "added_tokens[0].rstrip is true"},
    {R"([{"op":"replace","path":"/added_tokens/0/single_word","value":true}])", kUnsupported,
     "added_tokens[0].single_word is true"},
    {R"([{"op":"replace","path":"/added_tokens/0/special","value":1}])", kCorrupt,
     "added_tokens[0].special is 1, expected true or false"},

    {R"([{"op":"replace","path":"/normalizer","value":{"type":"NFC"}}])", kUnsupported,
     R"(normalizer.type is "NFC")"},
    {R"([{"op":"replace","path":"/normalizer/normalizers","value":[{"type":"NFC"}]}])", kUnsupported,
     "normalizer.normalizers is not empty"},
    {R"([{"op":"remove","path":"/pre_tokenizer"}])", kCorrupt, "pre_tokenizer is missing"},
    {R"([{"op":"replace","path":"/pre_tokenizer/type","value":"Metaspace"}])", kUnsupported,
     R"(pre_tokenizer.type is "Metaspace")"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers","value":[]}])", kUnsupported,
     "does not end in ByteLevel"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/0","value":3}])", kCorrupt,
     "pre_tokenizer.pretokenizers[0] is 3, expected an object"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/0/type","value":"Digits"}])", kUnsupported,
     R"(pre_tokenizer.pretokenizers[0].type is "Digits", hadal does only "Split")"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/1/behavior","value":"Removed"}])", kUnsupported,
     R"(pre_tokenizer.pretokenizers[1].behavior is "Removed", hadal does only "Isolated")"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/1/invert","value":true}])", kUnsupported,
     "pre_tokenizer.pretokenizers[1].invert is true"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/1/pattern","value":{"String":"a"}}])",
     kUnsupported, "pre_tokenizer.pretokenizers[1].pattern has no string Regex"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/1/pattern/Regex","value":"("}])", kUnsupported,
     "pre_tokenizer: Split pattern 1: the pattern has an unescaped '(' at byte 0"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/3/use_regex","value":true}])", kUnsupported,
     "pre_tokenizer.pretokenizers[3].use_regex is true"},
    {R"([{"op":"remove","path":"/pre_tokenizer/pretokenizers/3/use_regex"}])", kUnsupported,
     "pre_tokenizer.pretokenizers[3].use_regex is missing"},
    {R"([{"op":"replace","path":"/pre_tokenizer/pretokenizers/3/add_prefix_space","value":true}])",
     kUnsupported, "pre_tokenizer.pretokenizers[3].add_prefix_space is true"},
    {R"([{"op":"copy","from":"/pre_tokenizer/pretokenizers/0","path":"/pre_tokenizer/pretokenizers/4"}])",
     kUnsupported, "pre_tokenizer.pretokenizers[4] comes after ByteLevel"},
    {R"([{"op":"replace","path":"/post_processor/type","value":"TemplateProcessing"}])", kUnsupported,
     R"(post_processor.type is "TemplateProcessing")"},
    {R"([{"op":"remove","path":"/decoder"}])", kCorrupt, "decoder is missing"},
    {R"([{"op":"replace","path":"/decoder/type","value":"WordPiece"}])", kUnsupported,
     R"(decoder.type is "WordPiece")"},
};

TEST(TokenizerJson, RefusesByField) {
  for (const Malformed& entry : kMalformed) {
    const auto tokenizer = Tokenizer::from_json(small().patch(json::parse(entry.patch)).dump());
    ASSERT_FALSE(tokenizer) << entry.patch;
    EXPECT_EQ(tokenizer.error().code(), entry.code) << entry.patch;
    EXPECT_THAT(tokenizer.error().message(), HasSubstr(entry.message)) << entry.patch;
    EXPECT_EQ(tokenizer.error().message().find('\n'), std::string::npos) << entry.patch;
  }
}

TEST(TokenizerJson, RefusesWhatIsNotItsJson) {
  const std::string good = small().dump();
  std::string twice = good;
  twice.replace(twice.find("\"ab\":256"), 8, "\"ab\":256,\"ab\":256");
  std::string latin1 = good;
  latin1.replace(latin1.find("<x>"), 3, "<\xE9>");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not JSON: "},
      {"nonsense", "not JSON: "},
      {"[]", "not a JSON object"},
      {"{}", "pre_tokenizer is missing"},
      {std::string(5000, '['), "not JSON: "},
      {latin1, "not JSON: The input is not valid UTF-8"},
      {twice, "model.vocab has the token \"ab\" twice"},
  };
  for (const auto& [text, message] : cases) {
    const auto tokenizer = Tokenizer::from_json(text);
    ASSERT_FALSE(tokenizer) << text.substr(0, 50);
    EXPECT_THAT(tokenizer.error().message(), HasSubstr(message));
  }
  for (std::size_t cut = 0; cut < good.size(); cut += 97) {
    EXPECT_FALSE(Tokenizer::from_json(good.substr(0, cut))) << cut;
  }
  EXPECT_TRUE(Tokenizer::from_json(good));
}

}  // namespace
}  // namespace hadal
