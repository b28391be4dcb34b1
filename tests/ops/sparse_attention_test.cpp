// Core attention over a window that is partly in the state, partly in the batch, and over compressed rows in
// pages, in both formats: against the reference, and bit for bit against itself.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

// A sequence of `length` tokens: all its rows, as floats and as its state stores them.
struct History {
  History(RowShape row_shape, std::int64_t heads, std::int64_t window, std::int64_t ratio,
          std::int64_t length)
      : row(row_shape),
        n_heads(heads),
        window_rows(window),
        m(ratio),
        per_page(std::max<std::int64_t>(1, 128 / m)) {
    std::mt19937 generator(static_cast<unsigned>(length + heads));
    std::normal_distribution<float> normal;
    const auto draw = [&](std::int64_t n) {
      std::vector<float> out(static_cast<std::size_t>(n));
      for (float& x : out) x = normal(generator);
      return out;
    };
    ThreadPool pool(1);
    const auto rows = [&](std::int64_t n) {
      auto out = draw(n * row.dim);
      ref::quantise({QuantiseParams::Format::e4m3_64, n, row.dim, row.codes(), out.data()}, pool);
      for (std::size_t i = 0; i < out.size(); ++i) {
        if (static_cast<std::int64_t>(i) % row.dim >= row.codes()) out[i] = bf16_to_f32(f32_to_bf16(out[i]));
      }
      return out;
    };
    q = draw(length * heads * row.dim);
    for (float& x : q) x *= 3;  // scores of some size, so that the maximum moves from block to block
    sink = draw(heads);
    kv = rows(length);
    const std::int64_t n_compressed = length / m;
    const auto compressed = rows(n_compressed);
    const std::int64_t n_pages = (n_compressed + per_page - 1) / per_page;
    for (std::int64_t i = 0; i < n_pages; ++i) {
      pages.emplace_back(static_cast<std::size_t>(64 + per_page * row.bytes()));
      page_data.push_back(pages.back().data());
    }
    for (std::int64_t b = 0; b < n_compressed; ++b) {
      store_row(row, compressed.data() + b * row.dim,
                pages[static_cast<std::size_t>(b / per_page)].data() + 64, b % per_page);
    }
  }

  // Tokens [begin, end) in one batch behind the state of those before; of the compressed rows the k that a
  // hash chooses, or all if k is 0.
  std::vector<float> run(Backend* backend, std::int64_t begin, std::int64_t end, std::int64_t k,
                         bool bf16 = false) const {
    std::vector<std::byte> ring(static_cast<std::size_t>(window_rows * row.bytes()));
    for (std::int64_t p = std::max<std::int64_t>(0, begin - window_rows); p < begin; ++p)
      store_row(row, kv.data() + p * row.dim, ring.data(), p % window_rows);
    const std::int64_t n = end - begin;
    std::vector<std::int64_t> visible;
    std::vector<std::int32_t> selected;
    for (std::int64_t t = begin; t < end; ++t) {
      visible.push_back((t + 1) / m);
      std::vector<std::int32_t> chosen;
      for (std::int32_t b = 0; b < visible.back(); ++b) {
        const std::int64_t left = visible.back() - b, wanted = k - static_cast<std::int64_t>(chosen.size());
        if (wanted > 0 && (left <= wanted || (b * 7 + t) % 3 == 0)) chosen.push_back(b);
      }
      chosen.resize(static_cast<std::size_t>(k), -1);
      selected.insert(selected.end(), chosen.begin(), chosen.end());
    }
    const AttentionSegment segment{0, n, begin, ring.data(), {page_data.data(), 64, per_page, row}};
    std::vector<float> out(static_cast<std::size_t>(n * n_heads * row.dim), NAN);
    const SparseAttentionParams params{n,
                                       n_heads,
                                       row,
                                       q.data() + begin * n_heads * row.dim,
                                       kv.data() + begin * row.dim,
                                       {&segment, 1},
                                       window_rows,
                                       visible,
                                       k,
                                       k > 0 ? selected.data() : nullptr,
                                       sink.data(),
                                       out.data(),
                                       bf16};
    ThreadPool pool(2);
    if (backend != nullptr)
      backend->run(params);
    else
      ref::sparse_attention(params, pool);
    return out;
  }

  RowShape row;
  std::int64_t n_heads, window_rows, m, per_page;
  std::vector<float> q, kv, sink;
  std::vector<std::vector<std::byte>> pages;
  std::vector<const std::byte*> page_data;
};

class SparseAttentionTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend("cpu", GetParam(), pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    backend_ = std::move(*backend);
    other_ = std::move(*make_backend("cpu", GetParam(), other_pool_));
  }
  ThreadPool pool_{1}, other_pool_{3};
  std::unique_ptr<Backend> backend_, other_;
};

bool same(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// Root mean square of the difference over that of the expected, and the largest difference; a NaN sticks.
struct Difference {
  double relative = 0, worst = 0;

  Difference(std::span<const float> actual, std::span<const float> expected) {
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const double difference = std::fabs(double{actual[i]} - double{expected[i]});
      worst = difference <= worst ? worst : difference;
      error += difference * difference;
      norm += double{expected[i]} * double{expected[i]};
    }
    relative = std::sqrt(error / norm);
  }
};

TEST_P(SparseAttentionTest, MatchesReference) {
  struct Case {
    std::int64_t dim, rope_dim, heads, window, ratio, length, k;
  };
  for (const Case& c :
       {Case{128, 64, 21, 7, 4, 150, 0}, Case{96, 32, 5, 20, 4, 90, 9}, Case{512, 64, 64, 128, 4, 300, 40},
        Case{160, 32, 33, 16, 128, 515, 0}, Case{512, 64, 72, 3, 128, 270, 0},
        Case{80, 16, 4, 64, 4, 200, 20}, Case{112, 48, 21, 7, 32, 300, 0}}) {
    for (const RowFormat format : {RowFormat::f32, RowFormat::fp8_bf16}) {
      const RowShape row{format, c.dim, c.rope_dim};
      const History history(row, c.heads, c.window, c.ratio, c.length);
      const std::int64_t begin = c.length - 9;
      const auto expected = history.run(nullptr, begin, c.length, c.k);
      const auto actual = history.run(backend_.get(), begin, c.length, c.k);
      const Difference difference(actual, expected);
      // Scores reach 15 here, where float32 has a spacing of 1e-6.
      EXPECT_LT(difference.relative, 6e-7) << c.dim << ", " << c.heads << " heads";
      EXPECT_LT(difference.worst, 5e-6) << c.dim << ", " << c.heads << " heads";
      RecordProperty("relative_error_" + std::to_string(c.dim) + "_" + std::to_string(c.heads),
                     std::to_string(difference.relative * 1e9) + "e-9");
      // In BF16 an exponential is rounded in units of the largest so far, the reference's in units of the
      // largest of all, so that the two round apart wherever a later block raises the maximum: still well
      // below what the rounding itself costs.
      const auto rounded = history.run(nullptr, begin, c.length, c.k, true);
      const Difference bf16(history.run(backend_.get(), begin, c.length, c.k, true), rounded);
      EXPECT_LT(bf16.relative, 6e-4) << c.dim << ", " << c.heads << " heads";
      EXPECT_LT(bf16.worst, 6e-3) << c.dim << ", " << c.heads << " heads";
      const double rounding = Difference(rounded, expected).relative;
      EXPECT_GT(rounding, 1e-3);
      EXPECT_LT(rounding, 2e-2);
    }
  }
}

TEST_P(SparseAttentionTest, AnyBatchAndAnyFormatGiveTheSameBits) {
  for (const auto& [k, bf16] : {std::pair(0, false), {11, false}, {0, true}, {11, true}}) {
    const History floats({RowFormat::f32, 192, 64}, 37, 24, 4, 200),
        compact({RowFormat::fp8_bf16, 192, 64}, 37, 24, 4, 200);
    const auto whole = floats.run(backend_.get(), 0, 200, k, bf16);
    EXPECT_TRUE(same(compact.run(backend_.get(), 0, 200, k, bf16), whole));
    for (const History* history : {&floats, &compact}) {
      std::vector<float> parts;
      for (std::int64_t begin = 0, count = 1; begin < 200; begin += count, count = count % 50 + 7) {
        const auto part =
            history->run(other_.get(), begin, std::min<std::int64_t>(200, begin + count), k, bf16);
        parts.insert(parts.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(same(parts, whole));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, SparseAttentionTest,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2",
                                         "neon_dotprod", "neon", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace hadal
