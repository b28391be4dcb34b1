// The tokens of sampled turns are found again, by whoever they belong to, as long as their bytes suffice.
#include "serve/replay_store.h"

#include <gtest/gtest.h>

namespace hadal::serve {
namespace {

SampledTurn turn_of(const std::string& id, std::size_t tokens) {
  SampledTurn turn;
  turn.id = id;
  turn.tokens.assign(tokens, 7);
  turn.content = "text " + id;
  return turn;
}

Sha256 digest_of(const std::string& text) {
  return sha256(text);
}

TEST(ReplayStore, TheNewestThatFitAreKept) {
  constexpr std::int64_t kBudget = 1 << 20;
  ReplayStore store(kBudget, nullptr);
  IdSource source;
  std::vector<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    ids.push_back(source.next());
    store.put("mine", turn_of(ids.back(), 1000), digest_of(ids.back()));
    EXPECT_LE(store.stats().bytes, kBudget);
  }
  const auto [count, bytes, budget] = store.stats();
  EXPECT_EQ(budget, kBudget);
  EXPECT_GT(bytes, kBudget - 10'000) << "no room is left unused";
  EXPECT_GT(count, kBudget / 6000);
  for (int i = 0; i < 1000; ++i) {
    const auto id = static_cast<std::size_t>(i);
    const bool kept = i >= 1000 - count;
    EXPECT_EQ(store.by_id("mine", "call_" + ids[id] + "00") != nullptr, kept) << i;
    EXPECT_EQ(store.by_transcript("mine", digest_of(ids[id])) != nullptr, kept) << i;
    EXPECT_EQ(store.by_id("theirs", "call_" + ids[id] + "00"), nullptr);
    EXPECT_EQ(store.by_transcript("theirs", digest_of(ids[id])), nullptr);
  }
}

TEST(ReplayStore, OfTwoWithOneTranscriptTheLaterCounts) {
  ReplayStore store(20'000, nullptr);
  IdSource source;
  const std::string first = source.next(), second = source.next();
  store.put("mine", turn_of(first, 2000), digest_of("same"));
  store.put("mine", turn_of(second, 2000), digest_of("same"));
  EXPECT_EQ(store.by_transcript("mine", digest_of("same"))->id, second);
  store.put("mine", turn_of(source.next(), 2000), digest_of("other"));
  EXPECT_EQ(store.by_id("mine", first), nullptr) << "made room";
  ASSERT_NE(store.by_transcript("mine", digest_of("same")), nullptr) << "still the second's";
  EXPECT_EQ(store.by_transcript("mine", digest_of("same"))->id, second);
}

TEST(ReplayStore, OneThatIsTooLargeAloneIsForgotten) {
  ReplayStore store(1000, nullptr);
  const std::string id = IdSource().next();
  store.put("mine", turn_of(id, 2000), digest_of("text"));
  EXPECT_EQ(store.by_id("mine", id), nullptr);
  EXPECT_EQ(store.stats().bytes, 0);
}

}  // namespace
}  // namespace hadal::serve
