// The radix tree of prefixes against the plain definition: a list of all of them, searched to the end.
#include "engine/prefix_cache.h"

#include <map>
#include <set>

#include <gtest/gtest.h>

#include "base/rng.h"

namespace hadal {
namespace {

Config tiny_config() {
  Config config;
  config.hidden_size = 64;
  config.vocab_size = 10;
  config.num_hidden_layers = 1;
  config.num_nextn_predict_layers = 0;
  config.sliding_window = 4;
  config.head_dim = 64;
  config.qk_rope_head_dim = 64;
  config.compress_ratios = {0};
  return config;
}

SequenceState state_of(const StateLayout& layout, std::int64_t length) {
  SequenceState state(layout);
  state.prepare_append(length);
  state.advance(length);
  return state;
}

TEST(PrefixCache, FindsTheLongestPrefixLikeAList) {
  const StateLayout layout(tiny_config());
  PrefixCache cache(layout);
  std::map<std::string, std::set<std::vector<std::int32_t>>> list;
  const Philox random(1, 1);
  std::uint64_t n = 0;
  const auto draw = [&](std::uint32_t below) {
    return static_cast<std::int32_t>(random.block(n++)[0] % below);
  };
  for (int round = 0; round < 4000; ++round) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(1 + draw(12)));
    for (std::int32_t& token : tokens) token = draw(2);
    const std::string name = draw(4) == 0 ? "b" : "a";
    if (draw(3) == 0) {
      cache.insert(name, tokens, state_of(layout, static_cast<std::int64_t>(tokens.size())));
      list[name].insert(tokens);
    } else if (draw(12) == 0) {
      const std::int64_t before = cache.snapshots();
      EXPECT_EQ(cache.evict(), before > 0);
      // The list forgets the same one: that which the tree no longer finds.
      for (auto& [owner, all] : list) {
        for (auto it = all.begin(); it != all.end();) {
          const PrefixNode* node = cache.find(owner, *it, static_cast<std::int64_t>(it->size()));
          const bool there = node != nullptr && node->length == static_cast<std::int64_t>(it->size());
          it = there ? std::next(it) : all.erase(it);
        }
      }
    } else {
      const std::int64_t most = draw(13);
      std::size_t expected = 0;
      for (const auto& prefix : list[name]) {
        if (static_cast<std::int64_t>(prefix.size()) <= most && prefix.size() <= tokens.size() &&
            std::equal(prefix.begin(), prefix.end(), tokens.begin())) {
          expected = std::max(expected, prefix.size());
        }
      }
      const PrefixNode* node = cache.find(name, tokens, most);
      EXPECT_EQ(node == nullptr ? 0 : node->length, static_cast<std::int64_t>(expected));
    }
    EXPECT_EQ(cache.snapshots(), static_cast<std::int64_t>(list["a"].size() + list["b"].size()));
    EXPECT_LE(cache.nodes(), 2 * cache.snapshots() + 2) << "nodes that serve nothing";
  }
  while (cache.evict()) {
  }
  EXPECT_EQ(cache.nodes(), 0);
}

TEST(PrefixCache, WhatIsOnDiskStaysFindableAndWhatIsBeingWrittenStaysInMemory) {
  const StateLayout layout(tiny_config());
  PrefixCache cache(layout);
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4};
  PrefixNode* node = cache.insert("a", tokens, state_of(layout, 4));
  cache.begin_write(node, 77);
  EXPECT_FALSE(cache.evict());
  EXPECT_EQ(cache.on_disk(77), node);
  cache.end_write(node);
  EXPECT_TRUE(cache.evict());
  EXPECT_EQ(cache.find("a", tokens, 4), node);
  EXPECT_FALSE(node->snapshot.has_value());
  cache.forget_on_disk(node);
  EXPECT_EQ(cache.find("a", tokens, 4), nullptr);
  EXPECT_EQ(cache.nodes(), 0);
}

}  // namespace
}  // namespace hadal
