// What ranks agree on without any launcher; several processes are met in tests/cli/train_mpi_test.cpp.
#include "dist/communicator.h"

#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hadal {
namespace {

TEST(DealOut, CostlyFirstToWhoHasLeast) {
  const double costs[] = {1, 8, 2, 5, 4, 1};
  EXPECT_THAT(deal_out(costs, 2), testing::ElementsAre(1, 0, 0, 1, 1, 0));
  EXPECT_THAT(deal_out(costs, 1), testing::Each(0));
  EXPECT_TRUE(deal_out({}, 3).empty());
}

TEST(Alone, AgreesWithItself) {
  Alone alone;
  EXPECT_TRUE(agree(alone, {}).has_value());
  const Status status = agree(alone, fail(ErrorCode::io, "the disk is gone"));
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code(), ErrorCode::io);
  EXPECT_EQ(status.error().message(), "the disk is gone");
  const double values[] = {1, 2};
  EXPECT_THAT(alone.gather(std::span<const double>(values)),
              testing::ElementsAre(testing::ElementsAre(1, 2)));
}

TEST(Connect, WithoutALauncherIsAlone) {
  ::unsetenv("OMPI_COMM_WORLD_SIZE");
  ::unsetenv("PMI_SIZE");
  const auto communicator = connect();
  ASSERT_TRUE(communicator.has_value());
  EXPECT_EQ((*communicator)->size(), 1);
}

}  // namespace
}  // namespace hadal
