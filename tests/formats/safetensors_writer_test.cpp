// Writing safetensors: what is written reads back the same, appears only when complete, and a full disk is an
// error that leaves nothing behind.
#include "formats/safetensors_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "formats/safetensors.h"
#include "formats/safetensors_image.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::TemporaryDirectory;

std::size_t files_in(const fs::path& directory) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory), {}));
}

const std::vector<AnnouncedTensor> kTensors = {
    {"layers.0.w", DType::f8_e4m3, {3, 5}}, {"layers.0.s", DType::f32, {}}, {"empty", DType::bf16, {0, 4}}};

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TemporaryDirectory dir;
  const fs::path path = dir / "model.safetensors";
  std::string data;
  for (char c = 0; c < 19; ++c) data += c;
  {
    auto writer = SafetensorsWriter::create(path, kTensors);
    ASSERT_TRUE(writer.has_value()) << writer.error().message();
    const auto bytes = test::bytes_of(data);
    for (const auto piece : {bytes.first(0), bytes.first(7), bytes.subspan(7, 4), bytes.subspan(11)})
      ASSERT_TRUE(writer->write(piece));
    EXPECT_FALSE(fs::exists(path));  // not before it is complete
    ASSERT_TRUE(writer->commit());
  }
  EXPECT_EQ(files_in(dir.path()), 1U);
  const auto file = MappedFile::open(path);
  ASSERT_TRUE(file.has_value());
  const auto entries = parse_safetensors(file->bytes(), "x");
  ASSERT_TRUE(entries.has_value()) << entries.error().message();
  ASSERT_EQ(entries->size(), 3U);
  EXPECT_EQ((*entries)[0].name, "layers.0.w");
  EXPECT_EQ((*entries)[0].tensor.shape, (Shape{3, 5}));
  EXPECT_EQ((*entries)[0].tensor.dtype, DType::f8_e4m3);
  EXPECT_EQ((*entries)[0].tensor.data - file->bytes().data(),
            static_cast<std::ptrdiff_t>(file->bytes().size() - 19));
  EXPECT_EQ(static_cast<std::size_t>((*entries)[0].tensor.data - file->bytes().data()) % 64, 0U);
  EXPECT_EQ(static_cast<int>((*entries)[1].tensor.data[0]), 15);
}

TEST(SafetensorsWriter, LeavesNothingWhenGivenUp) {
  const TemporaryDirectory dir;
  {
    auto writer = SafetensorsWriter::create(dir / "model.safetensors", kTensors);
    ASSERT_TRUE(writer.has_value());
    EXPECT_EQ(files_in(dir.path()), 1U);  // under its temporary name
  }
  EXPECT_EQ(files_in(dir.path()), 0U);
}

TEST(SafetensorsWriter, RefusesAPlaceThatIsNotThere) {
  const auto writer = SafetensorsWriter::create("/no/such/place/model.safetensors", kTensors);
  ASSERT_FALSE(writer.has_value());
  EXPECT_EQ(writer.error().code(), ErrorCode::io);
  EXPECT_THAT(writer.error().message(),
              testing::HasSubstr("/no/such/place/model.safetensors: cannot create"));
}

// The limit on the size of a file stands for a full disk: write(2) fails the same way.
TEST(SafetensorsWriterDeathTest, ReportsAFullDiskAndLeavesNothing) {
  const TemporaryDirectory dir;
  const auto child = [&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::vector<AnnouncedTensor> large = {{"a", DType::f32, {1000, 1000}}};
    const std::vector<std::byte> block(64'000);
    int code = 1;
    {
      auto writer = SafetensorsWriter::create(dir / "model.safetensors", large);
      if (writer && writer->write(block)) {
        const Status status = writer->write(block);
        if (!status && status.error().message().find("cannot write") != std::string::npos) code = 0;
      }
    }
    std::_Exit(code + static_cast<int>(files_in(dir.path())));
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}

TEST(SafetensorsWriterDeathTest, InsistsOnThePromisedBytes) {
  const TemporaryDirectory dir;
  EXPECT_DEATH(
      {
        auto writer = SafetensorsWriter::create(dir / "model.safetensors", kTensors);
        (void)writer->commit();
      },
      "bytes_written");
}

}  // namespace
}  // namespace hadal
