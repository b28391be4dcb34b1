// Reading safetensors: what the format allows is read, everything else is refused in one line that names the
// file and the tensor.
#include "formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/safetensors_image.h"

namespace hadal {
namespace {

using test::bytes_of;
using test::entry;
using test::header_of;
using test::image;
using testing::HasSubstr;

void expect_refused(const std::string& file, std::string_view part, ErrorCode code = ErrorCode::corrupt) {
  // A copy of exactly this size on the heap, so that AddressSanitizer sees a read past its end.
  const std::vector<std::byte> exact(bytes_of(file).begin(), bytes_of(file).end());
  const auto entries = parse_safetensors(exact, "some.safetensors");
  ASSERT_FALSE(entries.has_value()) << "accepted, expected an error with: " << part;
  EXPECT_EQ(entries.error().code(), code);
  EXPECT_THAT(entries.error().message(), HasSubstr(part));
  EXPECT_THAT(entries.error().message(), testing::StartsWith("some.safetensors: "));
  EXPECT_THAT(entries.error().message(), testing::Not(HasSubstr("\n")));
}

TEST(Safetensors, ReadsEveryDTypeInTheOrderOfTheBytes) {
  const std::string header =
      header_of({entry("b", "F32", "[2,3]", 4, 28), entry("a", "I8", "[4]", 0, 4),
                 entry("c", "BF16", "[1,1,2]", 28, 32), entry("d", "F8_E4M3", "[3]", 32, 35),
                 entry("e", "F8_E8M0", "[1]", 35, 36), entry("f", "I64", "[]", 36, 44),
                 entry("g", "I32", "[1]", 44, 48), entry("h", "F16", "[1]", 48, 50),
                 entry("i", "U8", "[2]", 50, 52), R"("__metadata__":{"format":"pt","\n":"anything"})"});
  const std::string file = image(header, 52);
  const auto entries = parse_safetensors(bytes_of(file), "x");
  ASSERT_TRUE(entries.has_value()) << entries.error().message();
  ASSERT_EQ(entries->size(), 9U);
  std::string names;
  for (const auto& item : *entries) names += item.name;
  EXPECT_EQ(names, "abcdefghi");
  EXPECT_EQ((*entries)[1].tensor.shape, (Shape{2, 3}));
  EXPECT_EQ((*entries)[1].tensor.dtype, DType::f32);
  EXPECT_EQ(static_cast<int>((*entries)[1].tensor.data[0]), 4);
  EXPECT_EQ((*entries)[5].tensor.elements(), 1);  // a scalar
  EXPECT_EQ(static_cast<int>((*entries)[8].tensor.data[1]), 51);
}

TEST(Safetensors, ReadsAFileOfNothing) {
  const auto entries = parse_safetensors(bytes_of(image("{}", 0)), "x");
  ASSERT_TRUE(entries.has_value()) << entries.error().message();
  EXPECT_TRUE(entries->empty());
}

TEST(Safetensors, ReadsEmptyTensorsBesideFullOnes) {
  const std::string header =
      header_of({entry("full", "I8", "[4]", 0, 4), entry("empty", "F32", "[0,7]", 0, 0),
                 entry("last", "F32", "[9,0]", 4, 4)});
  const std::string file = image(header, 4);
  const auto entries = parse_safetensors(bytes_of(file), "x");
  ASSERT_TRUE(entries.has_value()) << entries.error().message();
  EXPECT_EQ((*entries)[0].name, "empty");
  EXPECT_EQ((*entries)[0].tensor.bytes(), 0);
}

TEST(Safetensors, RefusesTruncatedFilesAtEveryLength) {
  const std::string file = image(header_of({entry("a", "F32", "[4]", 0, 16)}), 16);
  ASSERT_TRUE(parse_safetensors(bytes_of(file), "x").has_value());
  for (std::size_t n = 0; n < file.size(); ++n) {
    const std::vector<std::byte> cut(bytes_of(file).begin(),
                                     bytes_of(file).begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_FALSE(parse_safetensors(cut, "x").has_value()) << n << " of " << file.size() << " bytes";
  }
  expect_refused(file.substr(0, 7), "7 bytes are too few");
  expect_refused(file.substr(0, 20), "truncated");
  expect_refused(file.substr(0, file.size() - 1), "bytes 0 to 16 lie outside the file's 15 bytes of data");
}

TEST(Safetensors, RefusesHeaderLengthsBeyondTheFileOrTheLimit) {
  expect_refused(image("{}", 0, 3), "a header of 3 bytes in a file of 10");
  expect_refused(image("{}", 0, 100'000'001), "more than 100 MB");
  expect_refused(image("{}", 0, std::int64_t{1} << 62), "more than 100 MB");
  expect_refused(std::string(8, '\xff') + "{}", "more than 100 MB");
}

TEST(Safetensors, RefusesHeadersThatAreNoJsonObject) {
  for (const std::string header : {"", "[]", "3", "{", "{\"a\":}", "nul", "{} {}", "\xff\xfe"})
    expect_refused(image(header, 0), "not a JSON object");
  expect_refused(image(std::string(100'000, '['), 0), "not a JSON object");
  std::string nested = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) nested += "{\"a\":";
  expect_refused(image(nested, 0), "not a JSON object");
}

TEST(Safetensors, RefusesEntriesWithoutTheirFields) {
  expect_refused(image(R"({"a":3})", 0), "tensor 'a': no dtype");
  expect_refused(image(R"({"a":{"shape":[],"data_offsets":[0,0]}})", 0), "tensor 'a': no dtype");
  expect_refused(image(R"({"a":{"dtype":"I8","data_offsets":[0,0]}})", 0), "tensor 'a': no shape");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[0]}})", 0), "tensor 'a': data_offsets");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[0],"data_offsets":[0]}})", 0), "data_offsets");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[0],"data_offsets":[-1,0]}})", 0), "data_offsets");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[1.5],"data_offsets":[0,1]}})", 1), "dimension");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[-1],"data_offsets":[0,1]}})", 1), "dimension");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":"x","data_offsets":[0,1]}})", 1), "no shape");
}

TEST(Safetensors, RefusesOffsetsThatOverlapLeaveHolesOrLeaveTheFile) {
  expect_refused(image(header_of({entry("a", "I8", "[4]", 0, 4), entry("b", "I8", "[4]", 2, 6)}), 6),
                 "tensor 'b' overlaps the one before it");
  expect_refused(image(header_of({entry("a", "I8", "[4]", 0, 4), entry("b", "I8", "[4]", 0, 4)}), 4),
                 "overlaps the one before it");
  expect_refused(image(header_of({entry("a", "I8", "[2]", 0, 2), entry("b", "I8", "[2]", 3, 5)}), 5),
                 "tensor 'b' leaves a hole behind the one before it");
  expect_refused(image(header_of({entry("a", "I8", "[2]", 1, 3)}), 3), "tensor 'a' leaves a hole");
  expect_refused(image(header_of({entry("a", "I8", "[2]", 0, 2)}), 3),
                 "1 bytes at the end belong to no tensor");
  expect_refused(image(header_of({entry("a", "I8", "[2]", 4, 2)}), 4), "lie outside");
  expect_refused(image(header_of({entry("a", "I8", "[9]", 0, 9)}), 8), "lie outside");
  expect_refused(image(R"({"a":{"dtype":"I8","shape":[1],"data_offsets":[0,18446744073709551615]}})", 8),
                 "lie outside");
}

TEST(Safetensors, RefusesSizesThatDoNotMatchDTypeAndShape) {
  expect_refused(image(header_of({entry("a", "F32", "[2,2]", 0, 8)}), 8),
                 "F32 of shape [2, 2] does not take the 8 bytes that its offsets span");
  expect_refused(image(header_of({entry("a", "I64", "[]", 0, 4)}), 4), "I64 of shape [] does not take");
}

TEST(Safetensors, RefusesShapesWhoseProductOverflows) {
  expect_refused(image(header_of({entry("a", "I8", "[4294967296,4294967296]", 0, 8)}), 8), "shape overflows");
  expect_refused(image(header_of({entry("a", "F32", "[4611686018427387904]", 0, 0)}), 0), "does not take");
  expect_refused(image(header_of({entry("a", "I8", "[18446744073709551615]", 0, 8)}), 8), "shape overflows");
  expect_refused(image(header_of({entry("a", "I8", "[0,9223372036854775808,2]", 0, 0)}), 0),
                 "shape overflows");
  expect_refused(image(header_of({entry("a", "I8", "[1,1,1,1,1,1,1,1,1]", 0, 1)}), 1),
                 "more than 8 dimensions");
}

TEST(Safetensors, RefusesNamesThatAreTwiceThereOrCannotBePrinted) {
  expect_refused(image(header_of({entry("a", "I8", "[2]", 0, 2), entry("a", "I8", "[2]", 2, 4)}), 4),
                 "tensor 'a' is declared twice");
  expect_refused(image(header_of({entry("", "I8", "[2]", 0, 2)}), 2), "its name is empty");
  expect_refused(image(header_of({entry(R"(a\nb)", "I8", "[2]", 0, 2)}), 2), "tensor 'a?b'");
  expect_refused(image(header_of({entry(std::string(300, 'x'), "I8", "[2]", 0, 2)}), 2), "longer than 256");
}

TEST(Safetensors, RefusesDTypesThatNoDeepSeekCheckpointHas) {
  for (const std::string dtype : {"F64", "BOOL", "U64", "F8_E5M2", "f32", ""}) {
    expect_refused(image(header_of({entry("a", dtype, "[1]", 0, 8)}), 8),
                   fmt::format("tensor 'a' has dtype '{}', which no DeepSeek-V4 checkpoint uses", dtype),
                   ErrorCode::unsupported);
  }
}

}  // namespace
}  // namespace hadal
