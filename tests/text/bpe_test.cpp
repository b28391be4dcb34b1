#include "text/bpe.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

namespace hadal {
namespace {

struct Pair {
  std::int32_t left;
  std::int32_t right;
  std::int32_t result;
};

std::array<std::int32_t, 256> identity() {
  std::array<std::int32_t, 256> ids{};
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

BytePairEncoder encoder_of(const std::vector<Pair>& pairs) {
  Merges merges(pairs.size());
  for (const Pair& pair : pairs) EXPECT_TRUE(merges.add(pair.left, pair.right, pair.result));
  return BytePairEncoder(identity(), std::move(merges));
}

std::vector<std::int32_t> encode(const BytePairEncoder& encoder, std::string_view piece) {
  BytePairEncoder::Scratch scratch;
  std::vector<std::int32_t> out;
  encoder.encode(piece, scratch, out);
  return out;
}

// The definition: the pair of the lowest rank, the leftmost of it, one merge at a time.
std::vector<std::int32_t> by_definition(const std::vector<Pair>& pairs, std::string_view piece) {
  std::map<std::pair<std::int32_t, std::int32_t>, std::size_t> rank;
  for (std::size_t r = 0; r < pairs.size(); ++r) rank[{pairs[r].left, pairs[r].right}] = r;
  std::vector<std::int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
  for (;;) {
    std::size_t best = pairs.size();
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = rank.find({ids[i], ids[i + 1]});
      if (found == rank.end() || found->second >= best) continue;
      best = found->second;
      at = i;
    }
    if (best == pairs.size()) return ids;
    ids[at] = pairs[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(BytePairEncoder, MergesByRankThenFromTheLeft) {
  using Ids = std::vector<std::int32_t>;
  const auto encoder = encoder_of({{'b', 'c', 256}, {'a', 'b', 257}, {'a', 'a', 258}, {257, 256, 259}});
  EXPECT_EQ(encode(encoder, "a"), Ids({'a'}));
  EXPECT_EQ(encode(encoder, "abc"), Ids({'a', 256}));
  EXPECT_EQ(encode(encoder, "aaa"), Ids({258, 'a'}));
  EXPECT_EQ(encode(encoder, "abbc"), Ids({259}));
  EXPECT_EQ(encode(encoder, "\xFFz"), Ids({0xFF, 'z'}));
}

TEST(BytePairEncoder, EqualsTheDefinitionAtAllLengths) {
  std::mt19937 rng(7);
  for (int round = 0; round < 20; ++round) {
    // Random merges of what there is so far, over few letters, so that they chain and compete.
    std::vector<Pair> pairs;
    std::set<std::pair<std::int32_t, std::int32_t>> seen;
    std::vector<std::int32_t> known = {'a', 'b', 'c'};
    while (pairs.size() < 60) {
      const std::int32_t left = known[rng() % known.size()];
      const std::int32_t right = known[rng() % known.size()];
      if (!seen.emplace(left, right).second) continue;
      const auto result = static_cast<std::int32_t>(256 + pairs.size());
      pairs.push_back({left, right, result});
      known.push_back(result);
    }
    std::shuffle(pairs.begin(), pairs.end(), rng);  // ranks in another order than ids
    const auto encoder = encoder_of(pairs);
    for (std::size_t length = 1; length <= 300;
         length += 1 + rng() % 5) {  // both ways of merging: up to 96 and above
      std::string piece;
      for (std::size_t i = 0; i < length; ++i) piece.push_back("abcd"[rng() % 4]);
      ASSERT_EQ(encode(encoder, piece), by_definition(pairs, piece)) << piece;
    }
  }
}

TEST(BytePairEncoder, ALongPieceTakesTimeInProportion) {
  // 2^k letters become one token when every doubling has a merge.
  std::vector<Pair> pairs = {{'a', 'a', 256}};
  for (std::int32_t id = 256; id < 256 + 19; ++id) pairs.push_back({id, id, id + 1});
  EXPECT_EQ(encode(encoder_of(pairs), std::string(std::size_t{1} << 20, 'a')),
            std::vector<std::int32_t>({275}));
}

TEST(Merges, HoldsPairsUpToTheLargestId) {
  Merges merges(3);
  EXPECT_EQ(merges.rank(kMaxTokens - 1, kMaxTokens - 1), Merges::kNone);
  EXPECT_TRUE(merges.add(kMaxTokens - 1, kMaxTokens - 1, 5));
  EXPECT_TRUE(merges.add(0, 0, 6));
  EXPECT_FALSE(merges.add(0, 0, 7));
  EXPECT_EQ(merges.rank(kMaxTokens - 1, kMaxTokens - 1), 0);
  EXPECT_EQ(merges.rank(0, 0), 1);
  EXPECT_EQ(merges.result(1), 6);
  EXPECT_EQ(merges.size(), 2u);
  EXPECT_EQ(merges.rank(1, 0), Merges::kNone);
}

}  // namespace
}  // namespace hadal
