// The layout of a state against the published counts, and states that no forward has filled. What forwards
// put in and read back is the subject of invariance_test.cpp.
#include "model/sequence_state.h"

#include <cmath>

#include <gtest/gtest.h>

namespace hadal {
namespace {

TEST(StateLayout, CompactHoldsAMillionTokensInThePublishedSize) {
  struct Published {
    const char* preset;
    double gigabytes;  // compressed rows, index rows and windows
  };
  for (const Published& p : {Published{"flash", 3.688}, Published{"pro", 5.280}}) {
    const auto config = preset_config(p.preset);
    ASSERT_TRUE(config.has_value());
    const StateLayout compact(*config, StateFormat::compact), f32(*config, StateFormat::f32);
    const std::int64_t million = std::int64_t{1} << 20;
    EXPECT_NEAR(static_cast<double>(compact.bytes(million)) / 1e9, p.gigabytes, 0.02 * p.gigabytes)
        << p.preset;
    EXPECT_GT(f32.bytes(million), 3 * compact.bytes(million));
    EXPECT_NE(compact.fingerprint, f32.fingerprint);
    EXPECT_EQ(compact.row.bytes(), 584);
  }
}

TEST(StateLayout, ItemsBeginAtCacheLinesAndDoNotOverlap) {
  for (const StateFormat format : {StateFormat::f32, StateFormat::compact}) {
    const StateLayout layout(*preset_config("flash"), format);
    std::int64_t page = 0, fixed = 0;
    for (const BlockStateLayout& block : layout.blocks) {
      EXPECT_EQ(block.window % 64, 0);
      EXPECT_GE(block.window, fixed);
      fixed = block.window + layout.window_rows * layout.row.bytes();
      for (const auto& tail : {block.tail, block.index_tail}) {
        if (tail.ratio == 0) continue;
        EXPECT_EQ(tail.values % 64, 0);
        EXPECT_GE(tail.values, fixed);
        EXPECT_GE(tail.gates, tail.values + 4 * tail.capacity() * tail.wide);
        fixed = tail.gates + 4 * tail.capacity() * tail.wide;
      }
      for (const auto& rows : {block.rows, block.index_rows}) {
        if (rows.per_page == 0) continue;
        EXPECT_EQ(rows.offset % 64, 0);
        EXPECT_GE(rows.offset, page);
        page = rows.offset + rows.per_page * rows.shape.bytes();
      }
    }
    EXPECT_GE(layout.fixed_bytes, fixed);
    EXPECT_GE(layout.page_bytes, page);
  }
}

TEST(StateFormat, FollowsTheNumerics) {
  EXPECT_EQ(choose_state_format("", true), StateFormat::compact);
  EXPECT_EQ(choose_state_format("", false), StateFormat::f32);
  EXPECT_EQ(choose_state_format("f32", true), StateFormat::f32);
  EXPECT_EQ(choose_state_format("compact", false).error().code(), ErrorCode::invalid_argument);
  EXPECT_FALSE(choose_state_format("fp16", true).has_value());
}

TEST(SequenceState, SyntheticRowsAreNumbersAndDiffer) {
  auto config = preset_config("flash");
  ASSERT_TRUE(config.has_value());
  config = cut_config(std::move(*config), 4, 8);
  ASSERT_TRUE(config.has_value());
  for (const StateFormat format : {StateFormat::f32, StateFormat::compact}) {
    const StateLayout layout(*config, format);
    SequenceState state(layout);
    state.fill_synthetic(1000, 1);
    EXPECT_EQ(state.length(), 1000);
    EXPECT_EQ(state.resident_bytes(), layout.bytes(1000));
    for (const BlockStateLayout& block : layout.blocks) {
      for (const RowsLayout& rows : {block.rows, block.index_rows}) {
        if (rows.per_page == 0) continue;
        const std::int64_t n = 1000 / (kPageTokens / rows.per_page);
        std::vector<float> row(static_cast<std::size_t>(rows.shape.dim)), before(row.size());
        for (std::int64_t i = 0; i < n; ++i) {
          state.paged_rows(rows).load(i, row.data());
          double squares = 0;
          for (const float x : row) squares += double{x} * double{x};
          const double rms = std::sqrt(squares / static_cast<double>(row.size()));
          ASSERT_TRUE(rms > 0.1 && rms < 5) << rms;  // neither NaN nor absurd
          ASSERT_NE(row, before) << i;
          before = row;
        }
      }
    }
    const auto expect_tail = [&](const TailLayout& tail) {
      for (std::int64_t i = 0; i < tail.capacity() * tail.wide; ++i) {
        ASSERT_TRUE(std::isfinite(state.fixed_floats(tail.values)[i]));
        ASSERT_TRUE(std::isfinite(state.fixed_floats(tail.gates)[i]));
      }
    };
    for (const BlockStateLayout& block : layout.blocks) {
      if (block.kind != AttentionKind::sliding) expect_tail(block.tail);
      if (block.kind == AttentionKind::csa) expect_tail(block.index_tail);
    }
  }
}

}  // namespace
}  // namespace hadal
