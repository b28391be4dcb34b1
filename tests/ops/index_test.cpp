// The lightning indexer: scores over FP4 rows equal the reference's bit for bit on every instruction set, and
// the selection is exactly the reference's, whatever the shapes, the ties and the threads.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/cpu/index_candidates.h"
#include "ops/cpu/index_query.h"
#include "ops/cpu/kernels.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

constexpr std::int64_t kPerPage = 32;

// How the scales of a row's blocks lie: close together, as after a Hadamard rotation; far apart; at the ends
// of what E8M0 holds; or any of these and zeros, block by block.
enum class Spread { close, wide, extreme, mixed };
constexpr Spread kSpreads[] = {Spread::close, Spread::wide, Spread::extreme, Spread::mixed};

// [rows, dim], rounded to E2M1 in blocks of 32.
std::vector<float> rounded(std::int64_t rows, std::int64_t dim, Spread spread, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> out(static_cast<std::size_t>(rows * dim));
  for (std::size_t i = 0; i < out.size(); i += 32) {
    const auto kind = spread == Spread::mixed ? static_cast<Spread>(generator() % 4) : spread;
    float scale = 1;
    if (kind == Spread::wide) scale = std::ldexp(1.0F, static_cast<int>(generator() % 13) - 6);
    if (kind == Spread::extreme) scale = std::ldexp(1.0F, static_cast<int>(generator() % 80) - 40);
    if (kind == Spread::mixed) scale = 0;
    for (std::size_t j = i; j < i + 32; ++j) out[j] = scale * normal(generator);
    ref::quantise_e2m1_block(out.data() + i, 32);
  }
  return out;
}

std::vector<float> normal_weights(std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& w : out) w = normal(generator);
  return out;
}

// Rows in pages, with something else in front of them and nonsense where no row was stored.
class Rows {
 public:
  Rows(RowFormat format, const std::vector<float>& values, std::int64_t dim) : shape_{format, dim, 0} {
    const std::int64_t n = static_cast<std::int64_t>(values.size()) / dim;
    const auto bytes = static_cast<std::size_t>(kOffset + kPerPage * shape_.bytes());
    for (std::int64_t i = 0; i < n; ++i) {
      if (i % kPerPage == 0) {
        storage_.emplace_back(bytes);
        std::memset(storage_.back().data(), 0xa5, bytes);
      }
      store_row(shape_, values.data() + i * dim, storage_.back().data() + kOffset, i % kPerPage);
    }
    for (auto& page : storage_) pages_.push_back(page.data());
  }
  PagedRows paged() const { return {pages_.data(), kOffset, kPerPage, shape_}; }

 private:
  static constexpr std::int64_t kOffset = 64;
  RowShape shape_;
  std::vector<Buffer<std::byte>> storage_;
  std::vector<const std::byte*> pages_;
};

struct Problem {
  std::int64_t heads, dim, k;
  std::vector<float> q, weights;
  Rows rows;
  std::vector<std::int64_t> visible;

  std::int64_t n_tokens() const { return static_cast<std::int64_t>(visible.size()); }
  std::vector<std::int32_t> select(Backend& backend) const {
    std::vector<std::int32_t> indices(static_cast<std::size_t>(n_tokens() * k), -7);
    backend.run(IndexSelectParams{n_tokens(), heads, dim, k, q.data(), weights.data(), rows.paged(), visible,
                                  indices.data()});
    return indices;
  }
};

Problem random_problem(std::int64_t heads, std::int64_t dim, std::int64_t k, std::int64_t n_rows,
                       std::vector<std::int64_t> visible, Spread spread, unsigned seed) {
  const auto tokens = static_cast<std::int64_t>(visible.size());
  return {heads,
          dim,
          k,
          rounded(tokens * heads, dim, spread, seed),
          normal_weights(tokens * heads, seed + 1),
          Rows(RowFormat::fp4_tiles, rounded(n_rows, dim, spread, seed + 2), dim),
          std::move(visible)};
}

class IndexTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto kernels = cpu::choose_kernels(GetParam());
    if (!kernels) GTEST_SKIP() << kernels.error().message();
    kernels_ = *kernels;
    reference_ = std::move(*make_backend("ref", "", pool_));
  }
  std::unique_ptr<Backend> backend(ThreadPool& pool) const {
    return std::move(*make_backend("cpu", GetParam(), pool));
  }
  const cpu::Kernels* kernels_ = nullptr;
  ThreadPool pool_{2};
  std::unique_ptr<Backend> reference_;
};

TEST_P(IndexTest, Fp4ScoresHaveTheReferencesBits) {
  int plain_blocks = 0, other_blocks = 0;
  for (const std::int64_t dim : {32, 64, 128, 256}) {
    for (const std::int64_t heads : {1, 4, 7, 64}) {
      for (const Spread row_spread : kSpreads) {
        for (const Spread q_spread : kSpreads) {
          for (const std::int64_t n : {1, 16, 31, 64}) {
            const auto values = rounded(n, dim, row_spread, static_cast<unsigned>(n));
            const Rows rows(RowFormat::fp4_tiles, values, dim);
            const auto q = rounded(heads, dim, q_spread, 5);
            auto weights = normal_weights(heads, 6);
            if (heads == 7) weights[3] = 0;
            std::vector<float> expected(static_cast<std::size_t>(n));
            const std::vector<std::int64_t> visible = {n};
            ref::index_scores(
                {1, heads, dim, q.data(), weights.data(), rows.paged(), visible, n, expected.data()}, pool_);

            Buffer<std::uint8_t> codes(static_cast<std::size_t>(cpu::kIndexBlockRows * dim));
            Buffer<float> block_scale(codes.size() / 32), scale(cpu::kIndexBlockRows);
            cpu::IndexRowBlock block{dim, false, codes.data(), scale.data(), block_scale.data()};
            std::vector<const std::byte*> tiles;
            for (std::int64_t i = 0; i < n; i += 16)
              tiles.push_back(rows.paged().page_of(i) + i % kPerPage * rows.paged().shape.bytes());
            kernels_->index_unpack(tiles.data(), n, block);
            (block.plain ? plain_blocks : other_blocks) += 1;
            cpu::IndexQueries queries;
            queries.reserve(1, heads, dim);
            queries.set(0, q.data(), weights.data(), heads);
            float actual[cpu::kIndexBlockRows];
            kernels_->index_scores(block, queries[0], actual);
            ASSERT_EQ(std::memcmp(actual, expected.data(), expected.size() * 4), 0)
                << "dim " << dim << ", " << heads << " heads, " << n << " rows, spreads "
                << static_cast<int>(row_spread) << " and " << static_cast<int>(q_spread) << "; first "
                << actual[0] << " for " << expected[0];
          }
        }
      }
    }
  }
  EXPECT_GT(plain_blocks, 200);
  EXPECT_GT(other_blocks, 200);
}

TEST_P(IndexTest, SelectsWhatTheReferenceSelects) {
  std::vector<Problem> problems;
  // Decode over many rows, and less than a block of them.
  problems.push_back(random_problem(8, 128, 64, 5000, {5000}, Spread::close, 1));
  problems.push_back(random_problem(3, 32, 1, 40, {37}, Spread::mixed, 2));
  problems.push_back(random_problem(64, 128, 512, 2500, {2499}, Spread::wide, 3));
  // Prefill: a row more every four tokens, from tokens that see nothing on.
  std::vector<std::int64_t> visible;
  for (std::int64_t t = 0; t < 77; ++t) visible.push_back(t / 4);
  problems.push_back(random_problem(4, 64, 8, 20, visible, Spread::close, 4));
  for (std::int64_t& v : visible) v += 310;
  problems.push_back(random_problem(5, 64, 33, 340, visible, Spread::mixed, 5));
  // More tokens than a slice, and tokens in no order.
  visible.clear();
  for (std::int64_t t = 0; t < 1050; ++t) visible.push_back(t * 37 % 131);
  problems.push_back(random_problem(1, 32, 16, 131, visible, Spread::close, 6));
  problems.push_back(random_problem(2, 32, 5, 1, {0, 0, 0}, Spread::close, 7));
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const auto expected = problems[i].select(*reference_);
    for (int threads = 1; threads <= 5; ++threads) {
      ThreadPool pool(threads);
      ASSERT_EQ(problems[i].select(*backend(pool)), expected)
          << "problem " << i << " on " << threads << " threads";
    }
  }
}

// Small integers: float32 is exact in any order, and nearly every score is another row's too.
TEST_P(IndexTest, SelectsAmongTiesAndOverFloatRows) {
  const std::int64_t heads = 2, dim = 64, n = 3000;
  std::mt19937 generator(9);
  const auto integers = [&](std::int64_t count, int largest) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& x : out) x = static_cast<float>(static_cast<int>(generator() % (2 * largest + 1)) - largest);
    return out;
  };
  for (const std::int64_t k : {1, 7, 512}) {
    std::vector<float> values;  // one of few rows each
    const auto few = integers(5 * dim, 1);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto from = few.begin() + static_cast<std::ptrdiff_t>(generator() % 5) * dim;
      values.insert(values.end(), from, from + dim);
    }
    for (const RowFormat format : {RowFormat::f32, RowFormat::fp4_tiles}) {
      const Problem problem{heads,
                            dim,
                            k,
                            integers(3 * heads * dim, 1),
                            integers(3 * heads, 1),
                            Rows(format, values, dim),
                            {n, n - 1, 2 * k}};
      const auto expected = problem.select(*reference_);
      for (const int threads : {1, 2, 4}) {
        ThreadPool pool(threads);
        EXPECT_EQ(problem.select(*backend(pool)), expected) << k << " on " << threads << " threads";
      }
    }
  }
}

TEST_P(IndexTest, BrokenNumbersStillGiveOneAnswer) {
  Problem problem = random_problem(4, 32, 20, 900, {900, 900, 900}, Spread::close, 11);
  problem.weights[0] = std::numeric_limits<float>::quiet_NaN();     // every score of token 0
  problem.weights[5] = std::numeric_limits<float>::infinity();      // infinities, and NaN of zeros
  for (std::size_t h = 8; h < 12; ++h) problem.weights[h] = -0.0F;  // zeros all over
  const auto expected = problem.select(*reference_);
  for (std::int32_t i = 0; i < 20; ++i) {
    EXPECT_EQ(expected[static_cast<std::size_t>(i)], i);
    EXPECT_EQ(expected[static_cast<std::size_t>(40 + i)], i);
  }
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_EQ(problem.select(*backend(pool)), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, IndexTest,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

TEST(IndexReference, Fp4ScoresAreTheProductsSum) {
  const std::int64_t heads = 64, dim = 128, n = 50;
  const auto values = rounded(n, dim, Spread::close, 12), q = rounded(heads, dim, Spread::close, 13);
  const auto weights = normal_weights(heads, 14);
  const Rows rows(RowFormat::fp4_tiles, values, dim);
  const std::vector<std::int64_t> visible = {n};
  std::vector<float> scores(n);
  ThreadPool pool(1);
  ref::index_scores({1, heads, dim, q.data(), weights.data(), rows.paged(), visible, n, scores.data()}, pool);
  for (std::int64_t b = 0; b < n; ++b) {
    double score = 0, size = 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      double dot = 0;
      for (std::int64_t i = 0; i < dim; ++i)
        dot += double{q[static_cast<std::size_t>(h * dim + i)]} *
               double{values[static_cast<std::size_t>(b * dim + i)]};
      score += std::max(dot, 0.0) * double{weights[static_cast<std::size_t>(h)]};
      size += std::max(dot, 0.0) * std::fabs(double{weights[static_cast<std::size_t>(h)]});
    }
    EXPECT_NEAR(scores[static_cast<std::size_t>(b)], score, 4e-7 * size) << b;
  }
}

TEST(TopK, TiesGoToTheLowestRowAndZeroHasOneSign) {
  const std::vector<float> scores = {0.0F, -0.0F, 1, -1, 0.0F, 1};
  std::vector<std::int32_t> indices(3);
  ref::top_k(scores.data(), 6, 3, indices.data());
  EXPECT_EQ(indices, (std::vector<std::int32_t>{0, 2, 5}));
}

TEST(Candidates, KeysOrderAsTheSelectionPrefers) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> descending = {infinity, 3e38F, 1, 1e-40F, 0, -1e-40F, -1, -3e38F, -infinity};
  for (std::size_t i = 0; i + 1 < descending.size(); ++i) {
    EXPECT_LT(cpu::candidate_key(descending[i], 9), cpu::candidate_key(descending[i + 1], 3));
    EXPECT_EQ(cpu::candidate_score(cpu::candidate_key(descending[i], 9)), descending[i]);
  }
  EXPECT_EQ(cpu::candidate_key(-0.0F, 4), cpu::candidate_key(0.0F, 4));
  EXPECT_EQ(cpu::candidate_key(std::nanf(""), 4), cpu::candidate_key(-infinity, 4));
  EXPECT_LT(cpu::candidate_key(1, 4), cpu::candidate_key(1, 5));
  EXPECT_EQ(cpu::candidate_row(cpu::candidate_key(1, 250'000)), 250'000);
}

TEST(Candidates, KeepTheBestOfAnyStream) {
  std::mt19937 generator(15);
  for (const std::int64_t k : {1, 2, 17, 100}) {
    for (const int kind : {0, 1, 2, 3}) {
      const std::int64_t n = 700;
      std::vector<float> scores(n);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const auto random = static_cast<float>(generator() % 1000);
        scores[i] = kind == 0 ? random : kind == 1 ? std::fmod(random, 3.0F) - 1 : static_cast<float>(i);
        if (kind == 3) scores[i] = -scores[i] - (i % 50 == 0 ? std::nanf("") : 0.0F);
      }
      std::vector<std::uint64_t> keys(static_cast<std::size_t>(2 * k)), scratch(keys.size());
      cpu::Candidates candidates(keys.data(), scratch.data(), k);
      for (std::int64_t i = 0; i < n; i += 63)
        candidates.offer(scores.data() + i, i, std::min<std::int64_t>(63, n - i));
      ASSERT_GE(candidates.size(), k);
      if (candidates.size() > k) cpu::keep_best(keys.data(), candidates.size(), k, scratch.data());
      std::vector<std::int32_t> expected(static_cast<std::size_t>(k)), actual;
      ref::top_k(scores.data(), n, k, expected.data());
      for (std::int64_t i = 0; i < k; ++i)
        actual.push_back(cpu::candidate_row(keys[static_cast<std::size_t>(i)]));
      EXPECT_EQ(actual, expected) << "k " << k << ", kind " << kind;
    }
  }
}

}  // namespace
}  // namespace hadal
