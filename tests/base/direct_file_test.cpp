// Reads past the page cache: the same bytes at any offset, and errors that say where.
#include "base/direct_file.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/anonymous_memory.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class DirectFileTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::path(testing::TempDir()) / ("hadal_direct_" + std::to_string(::getpid()));
    for (std::size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<char>(i * 7 + i / 251);
    std::ofstream(path_, std::ios::binary).write(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
  }
  void TearDown() override { fs::remove(path_); }

  fs::path path_;
  std::vector<char> bytes_ = std::vector<char>(100'003);  // its last block is a part of one
};

TEST_F(DirectFileTest, AnyRange) {
  auto file = DirectFile::open(path_);
  ASSERT_TRUE(file.has_value()) << file.error().message();
  auto memory = AnonymousMemory::map(bytes_.size() + 2 * DirectFile::kBlock);
  ASSERT_TRUE(memory.has_value());
  for (const auto& [offset, size] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0, 1},
                                                                                         {0, 4096},
                                                                                         {1, 4096},
                                                                                         {4095, 2},
                                                                                         {8192, 12288},
                                                                                         {5000, 70'000},
                                                                                         {99'000, 1003},
                                                                                         {100'002, 1},
                                                                                         {0, 100'003}}) {
    EXPECT_GE(DirectFile::footprint(offset, size), size);
    std::memset(memory->data(), 0x55, memory->size());
    const Status done = file->read(offset, size, memory->data());
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(std::memcmp(memory->data() + offset % DirectFile::kBlock, bytes_.data() + offset, size), 0)
        << size << " at " << offset;
    EXPECT_EQ(memory->data()[DirectFile::footprint(offset, size)], std::byte{0x55}) << "wrote beyond";
  }
}

TEST_F(DirectFileTest, TruncatedMeanwhile) {
  auto file = DirectFile::open(path_);
  ASSERT_TRUE(file.has_value());
  auto memory = AnonymousMemory::map(1 << 17);
  fs::resize_file(path_, 50'000);
  EXPECT_TRUE(file->read(40'000, 10'000, memory->data()).has_value());
  for (const std::uint64_t size : {10'001, 60'000}) {
    const Status failed = file->read(40'000, size, memory->data());
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error().code(), ErrorCode::io);
    EXPECT_THAT(failed.error().message(), HasSubstr("ends at byte 50000"));
    EXPECT_THAT(failed.error().message(), HasSubstr(path_.string()));
  }
}

TEST(DirectFile, ErrorsOfTheSystem) {
  EXPECT_EQ(DirectFile::open("/no/such/file").error().code(), ErrorCode::not_found);
  // Address 0 of this process is not mapped: the kernel answers EIO, as a broken disk does.
  auto broken = DirectFile::open("/proc/self/mem");
  ASSERT_TRUE(broken.has_value()) << broken.error().message();
  auto memory = AnonymousMemory::map(4096);
  const Status failed = broken->read(0, 100, memory->data());
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), ErrorCode::io);
  EXPECT_THAT(failed.error().message(), HasSubstr("Input/output error"));
}

}  // namespace
}  // namespace hadal
