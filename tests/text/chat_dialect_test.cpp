#include "text/chat_dialect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hadal {
namespace {

using testing::StartsWith;

TEST(ChatDialect, IsFoundByName) {
  EXPECT_EQ(*find_dialect("v4"), &dialect_v4());
  EXPECT_EQ(*find_dialect("v4-0731"), &dialect_v4_0731());
  EXPECT_EQ(find_dialect("v5").error().message(), "unknown chat dialect \"v5\" (known: v4, v4-0731)");
}

TEST(ChatDialect, IsToldByKeysOfTheConfig) {
  EXPECT_EQ(*dialect_of_config(R"({"hidden_size": 4096})"), &dialect_v4());
  EXPECT_EQ(*dialect_of_config(R"({"hidden_size": 4096, "dspark_block_size": 5})"), &dialect_v4_0731());
  EXPECT_EQ(*dialect_of_config(R"({"nested": {"dspark_block_size": 5}})"), &dialect_v4());
  EXPECT_EQ(dialect_of_config("[]").error().code(), ErrorCode::corrupt);
  EXPECT_EQ(dialect_of_config("{").error().code(), ErrorCode::corrupt);
}

TEST(ChatDialect, EffortsMoveByOneBetweenReleases) {
  const ChatDialect& v4 = dialect_v4();
  const ChatDialect& v4_0731 = dialect_v4_0731();
  EXPECT_EQ(v4.find_effort("low"), nullptr);
  EXPECT_EQ(v4.find_effort("high")->prefix, "");
  EXPECT_EQ(v4_0731.find_effort("low")->prefix, "");
  EXPECT_EQ(v4_0731.find_effort("high")->prefix, v4.find_effort("max")->prefix);
  EXPECT_THAT(v4.find_effort("max")->prefix,
              StartsWith("Reasoning Effort: Absolute maximum with no shortcuts"));
  EXPECT_THAT(v4_0731.find_effort("max")->prefix,
              StartsWith("Reasoning Effort: Beyond maximum — exhaustive"));
  EXPECT_EQ(v4_0731.find_effort("medium"), nullptr);
}

TEST(ChatDialect, AUsersLevelIsAlwaysOneOfTheDialect) {
  EXPECT_EQ(dialect_v4().effort_for("low"), "high");
  EXPECT_EQ(dialect_v4().effort_for("max"), "max");
  EXPECT_EQ(dialect_v4_0731().effort_for("low"), "low");
  EXPECT_EQ(dialect_v4_0731().effort_for("high"), "high");
}

}  // namespace
}  // namespace hadal
