// Only regular files are mapped; whatever else stands there is refused at once, never waited for.
#include "base/mapped_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file_writer.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class MappedFileTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  const fs::path directory_ =
      fs::temp_directory_path() / ("hadal_mapped_file_test_" + std::to_string(::getpid()));
  const fs::path path_ = directory_ / "file";
};

TEST_F(MappedFileTest, HoldsTheBytesEvenAfterTheFileIsUnlinked) {
  const std::string text("a\0b\n", 4);
  ASSERT_TRUE(write_file(path_, text).has_value());
  auto file = MappedFile::open(path_);
  ASSERT_TRUE(file.has_value());
  const MappedFile moved = std::move(*file);
  EXPECT_TRUE(file->bytes().empty());
  fs::remove(path_);
  ASSERT_EQ(moved.bytes().size(), 4U);
  EXPECT_EQ(std::memcmp(moved.bytes().data(), text.data(), 4), 0);
}

TEST_F(MappedFileTest, AnEmptyFileIsEmpty) {
  ASSERT_TRUE(write_file(path_, "").has_value());
  const auto file = MappedFile::open(path_);
  ASSERT_TRUE(file.has_value());
  EXPECT_TRUE(file->bytes().empty());
  EXPECT_EQ(read_file(path_).value(), "");
}

TEST_F(MappedFileTest, RefusesAFifoWithoutWaitingForItsWriter) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  const auto file = MappedFile::open(path_);
  ASSERT_FALSE(file.has_value());
  EXPECT_EQ(file.error().code(), ErrorCode::invalid_argument);
  EXPECT_THAT(file.error().message(), HasSubstr("not a regular file"));
}

TEST_F(MappedFileTest, RefusesDirectoriesAndDevices) {
  EXPECT_THAT(MappedFile::open(directory_).error().message(), HasSubstr("not a regular file"));
  EXPECT_THAT(MappedFile::open("/dev/zero").error().message(), HasSubstr("not a regular file"));
}

TEST_F(MappedFileTest, FollowsSymbolicLinksOnlyWhenAsked) {
  ASSERT_TRUE(write_file(path_, "x").has_value());
  const fs::path link = directory_ / "link";
  fs::create_symlink(path_, link);
  EXPECT_TRUE(MappedFile::open(link).has_value());
  const auto refused = MappedFile::open(link, false);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::corrupt);
  EXPECT_THAT(refused.error().message(), HasSubstr("symbolic link"));
}

TEST_F(MappedFileTest, MissingAndTooLargeFilesAreNamed) {
  const auto missing = MappedFile::open(path_);
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), ErrorCode::not_found);
  EXPECT_THAT(missing.error().message(), HasSubstr(path_.string()));
  ASSERT_TRUE(write_file(path_, "12345").has_value());
  EXPECT_TRUE(read_file(path_, 5).has_value());
  EXPECT_THAT(read_file(path_, 4).error().message(), HasSubstr("5 bytes, more than the 4"));
}

}  // namespace
}  // namespace hadal
