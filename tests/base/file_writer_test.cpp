// A file appears whole, under its own name, or not at all.
#include "base/file_writer.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;

class FileWriterTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory_); }
  void TearDown() override { fs::remove_all(directory_); }

  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory_), {}));
  }

  const fs::path directory_ =
      fs::temp_directory_path() / ("hadal_file_writer_test_" + std::to_string(::getpid()));
  const fs::path path_ = directory_ / "file";
};

TEST_F(FileWriterTest, NothingIsSeenBeforeCommit) {
  auto writer = FileWriter::create(path_);
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE(writer->write("some").has_value());
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE(writer->write(" bytes").has_value());
  EXPECT_EQ(writer->bytes_written(), 10U);
  ASSERT_TRUE(writer->commit().has_value());
  EXPECT_EQ(read_file(path_).value(), "some bytes");
  EXPECT_EQ(files(), 1U) << "the temporary file is gone";
}

TEST_F(FileWriterTest, AFileOfItsOwnerIsReadByNobodyElseAtAnyTime) {
  auto writer = FileWriter::create(path_, FileMode::owner);
  ASSERT_TRUE(writer.has_value());
  constexpr auto kOthers = fs::perms::group_all | fs::perms::others_all;
  for (const auto& part : fs::directory_iterator(directory_))
    EXPECT_EQ(part.status().permissions() & kOthers, fs::perms::none) << part.path();
  ASSERT_TRUE(writer->commit().has_value());
  EXPECT_EQ(fs::status(path_).permissions() & kOthers, fs::perms::none);
}

TEST_F(FileWriterTest, WhatWasWrittenCanBeOverwritten) {
  auto writer = FileWriter::create(path_);
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE(writer->write("0000 bytes").has_value());
  ASSERT_TRUE(writer->overwrite(2, "12").has_value());
  ASSERT_TRUE(writer->write(" more").has_value());
  EXPECT_EQ(writer->bytes_written(), 15U);
  ASSERT_TRUE(writer->commit().has_value());
  EXPECT_EQ(read_file(path_).value(), "0012 bytes more");
}

TEST_F(FileWriterTest, AnOldFileStaysWholeUntilCommitAndIsThenReplaced) {
  ASSERT_TRUE(write_file(path_, "old").has_value());
  auto writer = FileWriter::create(path_);
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE(writer->write("new").has_value());
  EXPECT_EQ(read_file(path_).value(), "old");
  ASSERT_TRUE(writer->commit().has_value());
  EXPECT_EQ(read_file(path_).value(), "new");
}

TEST_F(FileWriterTest, WithoutCommitNothingIsLeft) {
  ASSERT_TRUE(write_file(path_, "old").has_value());
  {
    auto writer = FileWriter::create(path_);
    ASSERT_TRUE(writer.has_value());
    FileWriter moved = std::move(*writer);
    ASSERT_TRUE(moved.write("half").has_value());
    EXPECT_EQ(files(), 2U);
  }
  EXPECT_EQ(read_file(path_).value(), "old");
  EXPECT_EQ(files(), 1U);
}

// Long enough for several windows of the write-behind, in pieces that do not divide them.
TEST_F(FileWriterTest, LargeFilesArriveByteForByte) {
  std::string text;
  text.resize(70'000'003);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>((i * 2654435761U) >> 13);
  auto writer = FileWriter::create(path_);
  ASSERT_TRUE(writer.has_value());
  constexpr std::size_t kPiece = 5'000'011;
  for (std::size_t at = 0; at < text.size(); at += kPiece) {
    ASSERT_TRUE(writer->write(std::string_view(text).substr(at, kPiece)).has_value());
  }
  ASSERT_TRUE(writer->commit().has_value());
  EXPECT_TRUE(read_file(path_).value() == text);
}

// A limit on file sizes stands in for the full disk, which a test cannot have without being root.
TEST_F(FileWriterTest, NoRoomIsAnErrorThatLeavesNothingBehind) {
  ASSERT_TRUE(write_file(path_, "old").has_value());
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = write_file(path_, std::string(2000, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);

  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code(), ErrorCode::io);
  EXPECT_THAT(status.error().message(), testing::HasSubstr(path_.string()));
  EXPECT_THAT(status.error().message(), testing::HasSubstr("cannot write"));
  EXPECT_EQ(read_file(path_).value(), "old");
  EXPECT_EQ(files(), 1U);
}

TEST_F(FileWriterTest, AFullDeviceIsResourceExhausted) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  // The temporary name leads to the device.
  fs::create_symlink("/dev/full", directory_ / ("file." + std::to_string(::getpid()) + ".part"));
  const Status status = write_file(path_, "text");
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code(), ErrorCode::resource_exhausted);
  EXPECT_THAT(status.error().message(), testing::HasSubstr("free some space"));
  EXPECT_EQ(files(), 0U);
}

TEST_F(FileWriterTest, ADirectoryThatIsNotThereOrInTheWayIsNamed) {
  const Status nowhere = write_file(directory_ / "no" / "file", "x");
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_THAT(nowhere.error().message(), testing::HasSubstr("cannot create"));
  fs::create_directory(path_);
  const Status in_the_way = write_file(path_, "x");
  ASSERT_FALSE(in_the_way.has_value());
  EXPECT_THAT(in_the_way.error().message(), testing::HasSubstr("rename into place"));
  EXPECT_EQ(files(), 1U);
}

}  // namespace
}  // namespace hadal
