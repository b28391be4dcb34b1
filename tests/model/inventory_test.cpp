// The inventory against the published indexes, and the counts against the published figures.
#include "model/inventory.h"

#include <gtest/gtest.h>

namespace hadal {
namespace {

TEST(Inventory, FlashIsThePublishedIndex) {
  const Inventory flash = expected_inventory(*preset_config("flash"), StorageFormat::published);
  EXPECT_EQ(flash.tensors, 69'187);
  EXPECT_EQ(flash.bytes, 159'609'485'896);
  ASSERT_EQ(flash.dtypes.size(), 6U);
  EXPECT_EQ(flash.dtypes.at(DType::bf16).tensors, 433);
  EXPECT_EQ(flash.dtypes.at(DType::f32).tensors, 417);
  EXPECT_EQ(flash.dtypes.at(DType::f8_e4m3).tensors, 375);
  EXPECT_EQ(flash.dtypes.at(DType::f8_e8m0).tensors, 34'167);
  EXPECT_EQ(flash.dtypes.at(DType::i64).tensors, 3);
  EXPECT_EQ(flash.dtypes.at(DType::i8).tensors, 33'792);
  std::int64_t tensors = 0, bytes = 0;
  for (const auto& [dtype, entry] : flash.dtypes) {
    tensors += entry.tensors;
    bytes += entry.bytes;
  }
  EXPECT_EQ(tensors, flash.tensors);
  EXPECT_EQ(bytes, flash.bytes);
}

TEST(Inventory, ProIsThePublishedIndex) {
  const Inventory pro = expected_inventory(*preset_config("pro"), StorageFormat::published);
  EXPECT_EQ(pro.tensors, 145'116);
  EXPECT_EQ(pro.bytes, 864'704'792'696);
}

TEST(Inventory, PlainFormatsHaveNoScales) {
  const Config flash = *preset_config("flash");
  const ParameterCount parameters = count_parameters(flash);
  const Inventory f32 = expected_inventory(flash, StorageFormat::f32);
  EXPECT_EQ(f32.tensors, 69'187 - 34'167);
  const std::int64_t hash_bytes = 3 * 129'280 * 6 * 8;
  EXPECT_EQ(f32.bytes, 4 * (parameters.total + parameters.mtp) + hash_bytes);
  const Inventory bf16 = expected_inventory(flash, StorageFormat::bf16);
  EXPECT_EQ(bf16.tensors, f32.tensors);
  EXPECT_EQ(bf16.bytes, 2 * (parameters.total + parameters.mtp) + hash_bytes);
}

TEST(Inventory, BaseReleasesHoldTheirExpertsInFp8) {
  Config base = *preset_config("flash");
  base.expert_format = Linear::Format::fp8;
  const Inventory inventory = expected_inventory(base, StorageFormat::published);
  EXPECT_EQ(inventory.tensors, 69'187);
  EXPECT_EQ(inventory.dtypes.count(DType::i8), 0U);
  EXPECT_EQ(inventory.dtypes.at(DType::f8_e4m3).tensors, 375 + 33'792);
}

TEST(Inventory, ParametersAreThePublishedNumbers) {
  const ParameterCount flash = count_parameters(*preset_config("flash"));
  EXPECT_EQ(flash.total, 284'332'240'471);  // 284.33B
  EXPECT_EQ(flash.active, 13'270'101'591);  // 13.27B
  const ParameterCount pro = count_parameters(*preset_config("pro"));
  EXPECT_EQ(pro.total, 1'572'997'201'763);  // 1573.0B
  EXPECT_EQ(pro.active, 48'852'402'019);    // 48.85B
  const ParameterCount v32 = count_parameters(*preset_config("v3.2"));
  EXPECT_EQ(v32.total, 671'877'944'064);  // 671B and the indexer
  EXPECT_EQ(v32.active, 37'477'143'296);  // 37B
}

TEST(Inventory, CachesAreThePublishedNumbers) {
  const CacheCost flash = cache_cost(*preset_config("flash"));
  EXPECT_EQ(flash.row_bytes, 584);
  EXPECT_EQ(flash.index_row_bytes, 68);
  EXPECT_DOUBLE_EQ(flash.bytes_per_token, 3'514.25);
  EXPECT_EQ(flash.bytes_per_sequence, 43 * 128 * 584);
  const CacheCost pro = cache_cost(*preset_config("pro"));
  EXPECT_DOUBLE_EQ(pro.bytes_per_token, 5'031.4375);
  EXPECT_EQ(pro.bytes_per_sequence, 61 * 128 * 584);
  const CacheCost v32 = cache_cost(*preset_config("v3.2"));
  EXPECT_DOUBLE_EQ(v32.bytes_per_token, 48'068);
  // The published 7 % and 10 % at a context of 2^20.
  EXPECT_NEAR(flash.bytes_at(1 << 20) / v32.bytes_at(1 << 20), 0.0732, 5e-5);
  EXPECT_NEAR(pro.bytes_at(1 << 20) / v32.bytes_at(1 << 20), 0.1048, 5e-5);
}

}  // namespace
}  // namespace hadal
