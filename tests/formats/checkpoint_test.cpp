// Checkpoint directories: one file, shards with an index, and everything an index must not be able to do.
#include "formats/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/safetensors_image.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::entry;
using test::image;
using test::TemporaryDirectory;
using test::write_text;
using testing::ElementsAre;
using testing::HasSubstr;

// A file of one I8 tensor of four bytes per name.
std::string file_of(const std::vector<std::string>& names) {
  std::string header = "{";
  std::int64_t at = 0;
  for (const auto& name : names) {
    if (at > 0) header += ',';
    header += entry(name, "I8", "[4]", at, at + 4);
    at += 4;
  }
  header += '}';
  return image(header, static_cast<std::size_t>(at));
}

std::string index_of(const std::vector<std::pair<std::string, std::string>>& weight_map) {
  std::string text = R"({"metadata":{"total_size":0},"weight_map":{)";
  for (std::size_t i = 0; i < weight_map.size(); ++i)
    text += fmt::format(R"({}"{}":"{}")", i > 0 ? "," : "", weight_map[i].first, weight_map[i].second);
  text += "}}";
  return text;
}

void expect_refused(const fs::path& directory, std::string_view part, ErrorCode code = ErrorCode::corrupt) {
  const auto checkpoint = Checkpoint::open(directory);
  ASSERT_FALSE(checkpoint.has_value()) << "accepted, expected an error with: " << part;
  EXPECT_EQ(checkpoint.error().code(), code) << checkpoint.error().message();
  EXPECT_THAT(checkpoint.error().message(), HasSubstr(part));
  EXPECT_THAT(checkpoint.error().message(), testing::Not(HasSubstr("\n")));
}

constexpr std::string_view kIndex = "model.safetensors.index.json";

TEST(Checkpoint, ReadsOneFile) {
  const TemporaryDirectory dir;
  write_text(dir / "model.safetensors", file_of({"a", "b"}));
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->tensor_count(), 2);
  EXPECT_EQ(checkpoint->total_bytes(), 8);
  EXPECT_THAT(checkpoint->names(), ElementsAre("a", "b"));
  ASSERT_NE(checkpoint->find("b"), nullptr);
  EXPECT_EQ(static_cast<int>(checkpoint->find("b")->data[0]), 4);
  EXPECT_EQ(checkpoint->find("c"), nullptr);
}

TEST(Checkpoint, ReadsALoneFileOfAnyName) {
  const TemporaryDirectory dir;
  write_text(dir / "other.safetensors", file_of({"a"}));
  EXPECT_TRUE(Checkpoint::open(dir.path()).has_value());
  write_text(dir / "another.safetensors", file_of({"b"}));
  expect_refused(dir.path(), "more than one *.safetensors", ErrorCode::not_found);
}

TEST(Checkpoint, ReadsShardsAndKeepsThemWhenMoved) {
  const TemporaryDirectory dir;
  write_text(dir / "one.safetensors", file_of({"a", "c"}));
  write_text(dir / "two.safetensors", file_of({"b"}));
  write_text(dir / kIndex,
             index_of({{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"c", "one.safetensors"}}));
  auto opened = Checkpoint::open(dir.path());
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  const Checkpoint checkpoint = std::move(*opened);
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "c", "b"));
  EXPECT_EQ(static_cast<int>(checkpoint.find("c")->data[3]), 7);
}

TEST(Checkpoint, ReadsAnImageInMemory) {
  const std::string file = file_of({"a"});
  Buffer<std::byte> bytes(file.size());
  std::memcpy(bytes.data(), file.data(), file.size());
  const auto checkpoint = Checkpoint::from_bytes(std::move(bytes), "embedded");
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->total_bytes(), 4);
}

TEST(Checkpoint, RefusesWhatIsNotThere) {
  const TemporaryDirectory dir;
  expect_refused(dir / "nowhere", "not a directory", ErrorCode::not_found);
  expect_refused(dir.path(), "there is neither model.safetensors nor model.safetensors.index.json",
                 ErrorCode::not_found);
  write_text(dir / kIndex, index_of({{"a", "gone.safetensors"}}));
  expect_refused(dir.path(), "gone.safetensors: cannot open: No such file", ErrorCode::not_found);
}

TEST(Checkpoint, RefusesIndexesThatLeaveTheDirectory) {
  const TemporaryDirectory outside;
  write_text(outside / "x.safetensors", file_of({"a"}));
  const TemporaryDirectory dir;
  fs::create_directory(dir / "sub");
  write_text(dir / "sub" / "x.safetensors", file_of({"a"}));
  for (const std::string& file :
       {(outside / "x.safetensors").string(), std::string("../x.safetensors"),
        std::string("sub/x.safetensors"), std::string("./x.safetensors"), std::string(".."), std::string("."),
        std::string(), std::string(R"(a\u0000b)"), std::string(R"(a\nb)")}) {
    write_text(dir / kIndex, index_of({{"a", file}}));
    expect_refused(dir.path(), "is not a plain file name in the model's directory");
  }
}

TEST(Checkpoint, RefusesSymlinksThatLeaveTheDirectory) {
  const TemporaryDirectory outside;
  write_text(outside / "x.safetensors", file_of({"a"}));
  const TemporaryDirectory dir;
  write_text(dir / kIndex, index_of({{"a", "link.safetensors"}}));
  fs::create_symlink(outside / "x.safetensors", dir / "link.safetensors");
  expect_refused(dir.path(), "outside the model's directory");
  fs::remove(dir / "link.safetensors");
  fs::create_symlink("nowhere", dir / "link.safetensors");
  expect_refused(dir.path(), "is a symbolic link that leads nowhere");
  fs::remove(dir / "link.safetensors");
  fs::create_symlink("link.safetensors", dir / "link.safetensors");
  expect_refused(dir.path(), "is a symbolic link that leads nowhere");
  // Within the directory there is nothing against one.
  fs::remove(dir / "link.safetensors");
  write_text(dir / "real.safetensors", file_of({"a"}));
  fs::create_symlink("real.safetensors", dir / "link.safetensors");
  EXPECT_TRUE(Checkpoint::open(dir.path()).has_value());
}

TEST(Checkpoint, ReadsTheSnapshotOfAHubCache) {
  const TemporaryDirectory cache;  // models--x--y/{blobs,snapshots/<revision>}
  const fs::path snapshot = cache / "snapshots" / "60d8d707";
  fs::create_directories(snapshot);
  fs::create_directory(cache / "blobs");
  write_text(cache / "blobs" / "abc1", file_of({"a"}));
  write_text(cache / "blobs" / "abc2", index_of({{"a", "model-00001-of-00001.safetensors"}}));
  fs::create_symlink("../../blobs/abc1", snapshot / "model-00001-of-00001.safetensors");
  fs::create_symlink("../../blobs/abc2", snapshot / kIndex);
  const auto checkpoint = Checkpoint::open(snapshot);
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->tensor_count(), 1);
  // The name "blobs" alone is not enough.
  fs::create_directories(cache / "snapshots" / "blobs");
  write_text(cache / "snapshots" / "blobs" / "abc3", file_of({"a"}));
  fs::remove(snapshot / "model-00001-of-00001.safetensors");
  fs::create_symlink("../blobs/abc3", snapshot / "model-00001-of-00001.safetensors");
  expect_refused(snapshot, "outside the model's directory");
}

TEST(Checkpoint, RefusesWhatIsNoRegularFile) {
  const TemporaryDirectory dir;
  write_text(dir / kIndex, index_of({{"a", "pipe.safetensors"}}));
  ASSERT_EQ(::mkfifo((dir / "pipe.safetensors").c_str(), 0600), 0);
  expect_refused(dir.path(), "not a regular file", ErrorCode::invalid_argument);  // and does not wait
  fs::remove(dir / "pipe.safetensors");
  fs::create_directory(dir / "pipe.safetensors");
  expect_refused(dir.path(), "not a regular file", ErrorCode::invalid_argument);
}

TEST(CheckpointDeathTest, RefusesFilesThatItMayNotRead) {
  const TemporaryDirectory dir;
  write_text(dir / "model.safetensors", file_of({"a"}));
  fs::permissions(dir / "model.safetensors", fs::perms::none);
  fs::permissions(dir.path(), fs::perms::all);
  const auto child = [&] {
    if (::geteuid() == 0 && ::setuid(65534) != 0) std::_Exit(9);  // root may read every file, nobody may not
    const auto checkpoint = Checkpoint::open(dir.path());
    const bool said = !checkpoint && checkpoint.error().code() == ErrorCode::io &&
                      checkpoint.error().message().find(
                          "model.safetensors: cannot open: Permission denied") != std::string::npos;
    std::_Exit(said ? 0 : 1);
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}

TEST(Checkpoint, RefusesBrokenIndexes) {
  const TemporaryDirectory dir;
  write_text(dir / "x.safetensors", file_of({"a", "b"}));
  const auto with_index = [&](std::string_view text, std::string_view part) {
    write_text(dir / kIndex, text);
    expect_refused(dir.path(), part);
  };
  with_index("", "not a JSON object");
  with_index("[1]", "not a JSON object");
  with_index(std::string(10'000, '['), "not a JSON object");
  with_index(R"({"metadata":{}})", "has no weight_map");
  with_index(R"({"weight_map":[]})", "has no weight_map");
  with_index(R"({"weight_map":{}})", "names no tensors");
  with_index(R"({"weight_map":{"a":7}})", "the file of tensor 'a' is not a string");
  with_index(R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})", "tensor 'a' is declared twice");
}

TEST(Checkpoint, RefusesAnIndexThatDisagreesWithItsShards) {
  const TemporaryDirectory dir;
  write_text(dir / "x.safetensors", file_of({"a", "b"}));
  write_text(dir / "y.safetensors", file_of({"b"}));
  write_text(dir / kIndex, index_of({{"a", "x.safetensors"}}));
  expect_refused(dir.path(), "x.safetensors: tensor 'b' is not in the index");
  write_text(dir / kIndex,
             index_of({{"a", "x.safetensors"}, {"b", "x.safetensors"}, {"z", "x.safetensors"}}));
  expect_refused(dir.path(), "x.safetensors: tensor 'z' is not in it, though the index says so");
  write_text(dir / kIndex, index_of({{"a", "x.safetensors"}, {"b", "y.safetensors"}}));
  expect_refused(dir.path(), "x.safetensors: tensor 'b' is not in the index");
  write_text(dir / "x.safetensors", file_of({"a"}).substr(0, 30));
  expect_refused(dir.path(), "x.safetensors: a header of");
}

}  // namespace
}  // namespace hadal
