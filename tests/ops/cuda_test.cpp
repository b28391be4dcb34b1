// Every op of the CUDA backend against the reference, and the bitwise promise on the device: the result of a
// token does not depend on its company. Skips where there is no device.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

std::vector<float> normal(std::int64_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = distribution(generator);
  return out;
}

double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += std::pow(double{actual[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(error / norm);
}

// A copy of numbers on the device.
template <class T>
class Device {
 public:
  Device(Memory& memory, const std::vector<T>& values)
      : block_(MemoryBlock::uninitialised(values.size() * sizeof(T), memory)), size_(values.size()) {
    block_.write(values.data());
  }
  // Not written yet: every byte is one that no result has.
  Device(Memory& memory, std::int64_t size) : Device(memory, poison(static_cast<std::size_t>(size))) {}
  T* data() { return reinterpret_cast<T*>(block_.data()); }
  std::vector<T> values() const {
    std::vector<T> out(size_);
    block_.read(out.data());
    return out;
  }

 private:
  static std::vector<T> poison(std::size_t size) {
    std::vector<T> values(size);
    std::memset(values.data(), 0xa5, size * sizeof(T));
    return values;
  }
  MemoryBlock block_;
  std::size_t size_;
};

// A matrix with random codes and scales around 1, here and on the device.
struct Matrix {
  std::vector<std::byte> weight;
  std::vector<std::uint8_t> scale;
  Linear linear;
  MemoryBlock device_weight, device_scale;

  Matrix(Linear::Format format, std::int64_t out, std::int64_t in, unsigned seed, Memory& memory)
      : linear{out, in, format, nullptr, nullptr} {
    std::mt19937 generator(seed);
    const auto values = normal(out * in, seed);
    weight.resize(static_cast<std::size_t>(out * linear.row_bytes()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto put16 = [&](std::uint16_t bits) { std::memcpy(weight.data() + 2 * i, &bits, 2); };
      switch (format) {
        case Linear::Format::f32:
          std::memcpy(weight.data() + 4 * i, &values[i], 4);
          break;
        case Linear::Format::f16:
          put16(f32_to_f16(values[i]));
          break;
        case Linear::Format::bf16:
          put16(f32_to_bf16(values[i]));
          break;
        case Linear::Format::fp8:  // subnormal codes too
          weight[i] = std::byte{f32_to_e4m3(i % 16 == 0 ? values[i] * 0.004F : values[i])};
          break;
        case Linear::Format::fp4:
          weight[i / 2] |= std::byte{static_cast<std::uint8_t>(f32_to_e2m1(values[i]) << (i % 2 * 4))};
          break;
      }
    }
    const std::int64_t scales =
        format == Linear::Format::fp4 ? out * (in / 32) : (out + 127) / 128 * ((in + 127) / 128);
    for (std::int64_t i = 0; i < scales; ++i)
      scale.push_back(static_cast<std::uint8_t>(125 + generator() % 6));
    linear.weight = weight.data();
    linear.scale = scale.data();
    device_weight = MemoryBlock::uninitialised(weight.size(), memory);
    device_weight.write(weight.data());
    device_scale = MemoryBlock::uninitialised(scale.size(), memory);
    device_scale.write(scale.data());
  }
  Linear on_device() const {
    Linear w = linear;
    w.weight = device_weight.data();
    w.scale = reinterpret_cast<const std::uint8_t*>(device_scale.data());
    return w;
  }
};

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    auto backend = make_backend("cuda", "", pool_);
    if (!backend) GTEST_SKIP() << backend.error().message();
    backend_ = std::move(*backend);
  }
  Memory& memory() { return backend_->memory(); }
  template <class T>
  Device<T> device(const std::vector<T>& values) {
    return Device<T>(memory(), values);
  }
  template <class T = float>
  Device<T> empty(std::int64_t size) {
    return Device<T>(memory(), size);
  }
  static void expect_same(const std::vector<float>& part, const std::vector<float>& all, std::int64_t n) {
    ASSERT_EQ(std::memcmp(part.data(), all.data(), part.size() * 4), 0) << "with " << n << " tokens";
  }

  ThreadPool pool_{2};
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaTest, LinearMatchesReferenceAndItself) {
  struct Shape {
    std::int64_t out, in, groups;
  };
  for (const auto format : {Linear::Format::f32, Linear::Format::f16, Linear::Format::bf16,
                            Linear::Format::fp8, Linear::Format::fp4}) {
    for (const Shape& s : {Shape{134, 384, 1}, Shape{134, 384, 2}, Shape{24, 2048, 1}, Shape{64, 1152, 1},
                           Shape{2822, 384, 1}, Shape{2880, 128, 2}}) {
      const std::int64_t most = 150;
      const Matrix w(format, s.out, s.in, 7, memory());
      const Linear on_device = w.on_device();
      const auto x = normal(most * s.groups * s.in, 11);
      Device<float> device_x = device(x);
      for (const auto rounding : {InputRounding::none, InputRounding::e4m3}) {
        std::vector<float> expected(static_cast<std::size_t>(most * s.out));
        ref::linear({most, x.data(), &w.linear, s.groups, rounding, expected.data()}, pool_);
        const auto run = [&](std::int64_t n) {
          Device<float> y = empty(n * s.out);
          backend_->run(LinearParams{n, device_x.data(), &on_device, s.groups, rounding, y.data()});
          return y.values();
        };
        const auto all = run(most);
        EXPECT_LT(relative_error(all, expected), 6e-7) << static_cast<int>(format) << " " << s.out << "x"
                                                       << s.in << " rounding " << static_cast<int>(rounding);
        for (const std::int64_t n : {1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100, 129})
          expect_same(run(n), all, n);
      }
    }
  }
}

TEST_F(CudaTest, ExpertsMatchReferenceAndThemselves) {
  const std::int64_t d = 256, inter = 128, n_experts = 7, k = 3, most = 120;
  for (const auto format :
       {Linear::Format::fp4, Linear::Format::fp8, Linear::Format::bf16, Linear::Format::f32}) {
    std::vector<Matrix> matrices;
    matrices.reserve(3 * (n_experts + 1));
    std::vector<Expert> experts, on_device;
    for (std::int64_t e = 0; e <= n_experts; ++e) {
      const auto seed = static_cast<unsigned>(100 + 3 * e);
      const auto own = e == n_experts && format == Linear::Format::fp4 ? Linear::Format::fp8 : format;
      matrices.emplace_back(own, inter, d, seed, memory());
      matrices.emplace_back(own, d, inter, seed + 1, memory());
      matrices.emplace_back(own, inter, d, seed + 2, memory());
      const auto last = matrices.end();
      experts.push_back({last[-3].linear, last[-2].linear, last[-1].linear});
      on_device.push_back({last[-3].on_device(), last[-2].on_device(), last[-1].on_device()});
    }
    const auto x = normal(most * d, 5, 0.1F);
    std::mt19937 generator(6);
    std::vector<std::int32_t> indices;
    std::vector<float> weights;
    for (std::int64_t t = 0; t < most; ++t) {
      std::vector<std::int32_t> ids = {0, 1, 2, 3, 4, 5, 6};
      std::shuffle(ids.begin(), ids.end() - (t % 3 == 0 ? 0 : 2), generator);
      for (std::int64_t i = 0; i < k; ++i) {
        indices.push_back(ids[static_cast<std::size_t>(i)]);
        weights.push_back(0.2F + 0.1F * static_cast<float>(i));
      }
    }
    Device<float> device_x = device(x), device_weights = device(weights);
    Device<std::int32_t> device_indices = device(indices);
    for (const auto rounding : {InputRounding::none, InputRounding::e4m3}) {
      std::vector<float> expected(static_cast<std::size_t>(most * d));
      const auto all_experts = std::span(experts).first(static_cast<std::size_t>(n_experts));
      ref::experts({most, d, inter, k, x.data(), indices.data(), weights.data(), all_experts, &experts.back(),
                    10, rounding, expected.data()},
                   pool_);
      const auto run = [&](std::int64_t n, bool in_two_calls) {
        Device<float> out = empty(n * d);
        auto span = std::span(on_device).first(static_cast<std::size_t>(n_experts));
        ExpertsParams p{
            n,  d,       inter, k,        device_x.data(), device_indices.data(), device_weights.data(),
            {}, nullptr, 10,    rounding, out.data()};
        if (!in_two_calls) {
          p.experts = span;
          p.shared = &on_device.back();
          backend_->run(p);
          return out.values();
        }
        std::vector<Expert> part(span.begin(), span.end());
        for (std::size_t e = 3; e < part.size(); ++e) part[e] = {};
        p.experts = part;
        backend_->run(p);
        std::vector<Expert> rest(span.begin(), span.end());
        for (std::size_t e = 0; e < 3; ++e) rest[e] = {};
        p.experts = rest;
        p.shared = &on_device.back();
        p.accumulate = true;
        backend_->run(p);
        return out.values();
      };
      const auto all = run(most, false);
      // With quantised inputs one rounding may fall the other way in front of w2.
      EXPECT_LT(relative_error(all, expected), rounding != InputRounding::none ? 3e-3 : 2e-6)
          << static_cast<int>(format) << " rounding " << static_cast<int>(rounding);
      for (const std::int64_t n : {1, 2, 5, 20, 40, 119}) expect_same(run(n, false), all, n);
      expect_same(run(most, true), all, most);
    }
  }
}

TEST_F(CudaTest, RowOps) {
  const std::int64_t rows = 21, dim = 512, rope_dim = 64, heads = 3;
  const auto x = normal(rows * dim, 1), weight = normal(dim, 2),
             angles = normal(rows / heads * rope_dim / 2, 3);
  std::vector<float> cos, sin;
  for (const float a : angles) {
    cos.push_back(std::cos(a));
    sin.push_back(std::sin(a));
  }
  Device<float> device_weight = device(weight), device_cos = device(cos), device_sin = device(sin);
  // One op after another: one kernel; then each alone.
  std::vector<float> expected = x;
  const auto both = [&](auto&& params, auto&& reference) {
    Device<float> on_device = device(expected);
    params(on_device.data());
    reference(expected.data());
    const auto actual = on_device.values();
    EXPECT_LT(relative_error(actual, expected), 2e-7);
    expected = actual;
  };
  both(
      [&](float* d) {
        backend_->run(RmsNormParams{rows, dim, d, device_weight.data(), 1e-6F, d});
      },
      [&](float* h) {
        ref::rms_norm({rows, dim, h, weight.data(), 1e-6F, h}, pool_);
      });
  for (const bool inverse : {false, true}) {
    both(
        [&](float* d) {
          backend_->run(RopeParams{rows / heads, heads, dim, rope_dim, device_cos.data(), device_sin.data(),
                                   inverse, d});
        },
        [&](float* h) {
          ref::rope({rows / heads, heads, dim, rope_dim, cos.data(), sin.data(), inverse, h}, pool_);
        });
  }
  both(
      [&](float* d) {
        backend_->run(HadamardParams{rows, dim, d});
      },
      [&](float* h) {
        ref::hadamard({rows, dim, h}, pool_);
      });
  for (const auto format :
       {QuantiseParams::Format::e4m3_64, QuantiseParams::Format::e2m1_32, QuantiseParams::Format::e4m3_128}) {
    expected = x;
    both(
        [&](float* d) {
          backend_->run(QuantiseParams{format, rows, dim, 384, d});
        },
        [&](float* h) {
          ref::quantise({format, rows, dim, 384, h}, pool_);
        });
  }
  std::vector<float> chained = x;
  ref::rms_norm({rows, dim, chained.data(), nullptr, 1e-6F, chained.data()}, pool_);
  ref::rope({rows / heads, heads, dim, rope_dim, cos.data(), sin.data(), false, chained.data()}, pool_);
  Device<float> on_device = device(x);
  backend_->run(RmsNormParams{rows, dim, on_device.data(), nullptr, 1e-6F, on_device.data()});
  backend_->run(RopeParams{rows / heads, heads, dim, rope_dim, device_cos.data(), device_sin.data(), false,
                           on_device.data()});
  const auto normed = on_device.values();
  EXPECT_LT(relative_error(normed, chained), 2e-7);
  // Quantised values are exactly those of the reference.
  Device<float> again = device(normed);
  backend_->run(QuantiseParams{QuantiseParams::Format::e4m3_64, rows, dim, dim - rope_dim, again.data()});
  backend_->run(RoundBf16Params{rows, dim, dim - rope_dim, again.data()});
  chained = normed;
  ref::quantise({QuantiseParams::Format::e4m3_64, rows, dim, dim - rope_dim, chained.data()}, pool_);
  ref::round_bf16({rows, dim, dim - rope_dim, chained.data()});
  EXPECT_EQ(again.values(), chained);
}

TEST_F(CudaTest, EntryOps) {
  const std::int64_t rows = 12, dim = 130, copies = 4;
  const auto x = normal(rows * dim, 1), y = normal(rows / 4 * dim, 2);
  Device<float> device_x = device(x), device_y = device(y);
  auto expected = x;
  ref::scale({rows * dim, 0.3F, expected.data()});
  ref::add_rows({rows, dim, 4, y.data(), expected.data()});
  backend_->run(ScaleParams{rows * dim, 0.3F, device_x.data()});
  backend_->run(AddRowsParams{rows, dim, 4, device_y.data(), device_x.data()});
  EXPECT_EQ(device_x.values(), expected);

  const std::vector<std::int64_t> wanted = {3, 0, 11, 3};
  std::vector<float> gathered(4 * dim);
  ref::gather_rows({wanted, dim, expected.data(), gathered.data()});
  Device<float> device_gathered = empty(4 * dim);
  backend_->run(GatherRowsParams{wanted, dim, device_x.data(), device_gathered.data()});
  EXPECT_EQ(device_gathered.values(), gathered);

  const Matrix table(Linear::Format::bf16, 50, 96, 3, memory());
  const Linear on_device = table.on_device();
  const std::vector<std::int32_t> tokens = {49, 0, 7};
  std::vector<float> streams(3 * copies * 96);
  ref::embed({tokens, &table.linear, copies, streams.data()}, pool_);
  Device<float> device_streams = empty(3 * copies * 96);
  backend_->run(EmbedParams{tokens, &on_device, copies, device_streams.data()});
  EXPECT_EQ(device_streams.values(), streams);

  const std::vector<std::int64_t> positions = {0, 1, 127, 4099, 1048575};
  const std::vector<float> frequencies = {1, 0.31F, 0.017F, 1.7e-5F};
  std::vector<float> cos(20), sin(20);
  ref::angles({positions, frequencies, cos.data(), sin.data()});
  Device<float> device_cos = empty(20), device_sin = empty(20);
  backend_->run(AnglesParams{positions, frequencies, device_cos.data(), device_sin.data()});
  const auto actual_cos = device_cos.values(), actual_sin = device_sin.values();
  for (std::size_t i = 0; i < cos.size(); ++i) {
    EXPECT_NEAR(actual_cos[i], cos[i], 6e-8F);
    EXPECT_NEAR(actual_sin[i], sin[i], 6e-8F);
  }
}

TEST_F(CudaTest, HyperConnectionsAndGate) {
  for (const std::int64_t n : {2, 4, 6}) {
    const std::int64_t t = 9, dim = 300, mixes = (2 + n) * n;
    auto streams = normal(t * n * dim, 1);
    const auto mix = normal(t * mixes, 2, 20), base = normal(mixes, 3), y = normal(t * dim, 4);
    const std::vector<float> scale = {0.5F, 0.7F, 0.9F};
    std::vector<float> pre(static_cast<std::size_t>(t * n)), post(pre.size()),
        comb(static_cast<std::size_t>(t * n * n)), out(static_cast<std::size_t>(t * dim)), head(out.size());
    ref::hc_pre({t, n, dim, streams.data(), mix.data(), scale.data(), base.data(), 20, 1e-6F, 1e-6F,
                 pre.data(), post.data(), comb.data(), out.data()},
                pool_);
    ref::hc_head(
        {t, n, dim, streams.data(), mix.data(), scale.data(), base.data(), 1e-6F, 1e-6F, head.data()}, pool_);
    Device<float> d_streams = device(streams), d_mix = device(mix), d_base = device(base),
                  d_scale = device(scale), d_y = device(y), d_pre = empty(t * n), d_post = empty(t * n),
                  d_comb = empty(t * n * n), d_out = empty(t * dim), d_head = empty(t * dim);
    backend_->run(HcPreParams{t, n, dim, d_streams.data(), d_mix.data(), d_scale.data(), d_base.data(), 20,
                              1e-6F, 1e-6F, d_pre.data(), d_post.data(), d_comb.data(), d_out.data()});
    backend_->run(HcHeadParams{t, n, dim, d_streams.data(), d_mix.data(), d_scale.data(), d_base.data(),
                               1e-6F, 1e-6F, d_head.data()});
    EXPECT_LT(relative_error(d_pre.values(), pre), 1e-6);
    EXPECT_LT(relative_error(d_post.values(), post), 1e-6);
    EXPECT_LT(relative_error(d_comb.values(), comb), 2e-6);
    EXPECT_LT(relative_error(d_out.values(), out), 1e-6);
    EXPECT_LT(relative_error(d_head.values(), head), 1e-6);
    // With the norm behind it: one kernel.
    Device<float> d_normed = empty(t * dim);
    backend_->run(HcPreParams{t, n, dim, d_streams.data(), d_mix.data(), d_scale.data(), d_base.data(), 20,
                              1e-6F, 1e-6F, d_pre.data(), d_post.data(), d_comb.data(), d_normed.data()});
    backend_->run(RmsNormParams{t, dim, d_normed.data(), nullptr, 1e-6F, d_normed.data()});
    ref::rms_norm({t, dim, out.data(), nullptr, 1e-6F, out.data()}, pool_);
    EXPECT_LT(relative_error(d_normed.values(), out), 1e-6);
    EXPECT_LT(relative_error(d_comb.values(), comb), 2e-6);
    ref::hc_post({t, n, dim, y.data(), post.data(), comb.data(), streams.data()}, pool_);
    Device<float> same_post = device(post), same_comb = device(comb);
    backend_->run(HcPostParams{t, n, dim, d_y.data(), same_post.data(), same_comb.data(), d_streams.data()});
    EXPECT_EQ(d_streams.values(), streams);
  }
  const std::int64_t t = 40, n_experts = 70, k = 6, vocab = 100;
  auto logits = normal(t * n_experts, 5, 3);
  for (std::size_t i = 0; i < 70; i += 2) logits[i] = 1;  // ties: the lowest first
  const auto bias = normal(n_experts, 6, 0.2F);
  std::vector<std::int32_t> table, tokens;
  std::mt19937 generator(7);
  for (std::int64_t i = 0; i < vocab * k; ++i)
    table.push_back(static_cast<std::int32_t>(generator() % n_experts));
  for (std::int64_t i = 0; i < t; ++i) tokens.push_back(static_cast<std::int32_t>(generator() % vocab));
  Device<float> d_logits = device(logits), d_bias = device(std::vector<float>(n_experts, 0.0F)),
                d_real = device(bias);
  Device<std::int32_t> d_table = device(table);
  const std::vector<float> no_bias(n_experts, 0.0F);
  for (int kind = 0; kind < 3; ++kind) {
    std::vector<float> scores(static_cast<std::size_t>(t * n_experts)),
        weights(static_cast<std::size_t>(t * k));
    std::vector<std::int32_t> indices(weights.size());
    const float* host_bias = kind == 0 ? bias.data() : kind == 1 ? no_bias.data() : nullptr;
    float* device_bias = kind == 0 ? d_real.data() : kind == 1 ? d_bias.data() : nullptr;
    ref::gate({t, n_experts, k, logits.data(), host_bias, kind == 2 ? table.data() : nullptr, tokens, 1.5F,
               scores.data(), indices.data(), weights.data()},
              pool_);
    Device<float> d_scores = empty(t * n_experts), d_weights = empty(t * k);
    Device<std::int32_t> d_indices = empty<std::int32_t>(t * k);
    backend_->run(GateParams{t, n_experts, k, d_logits.data(), device_bias,
                             kind == 2 ? d_table.data() : nullptr, tokens, 1.5F, d_scores.data(),
                             d_indices.data(), d_weights.data()});
    EXPECT_EQ(d_indices.values(), indices) << kind;
    EXPECT_LT(relative_error(d_scores.values(), scores), 1e-6);
    EXPECT_LT(relative_error(d_weights.values(), weights), 1e-6);
  }
}

TEST_F(CudaTest, CompressorsInAnyChunks) {
  for (const bool overlap : {false, true}) {
    const std::int64_t m = overlap ? 4 : 16, dim = 96, wide = (overlap ? 2 : 1) * dim, n = 45;
    const auto values = normal(n * wide, 1), gates = normal(n * wide, 2, 3), bias = normal(m * wide, 3);
    auto reference = std::move(*make_backend("ref", "", pool_));
    Device<float> d_values = device(values), d_gates = device(gates), d_bias = device(bias);
    for (const std::vector<std::int64_t>& chunks :
         std::vector<std::vector<std::int64_t>>{{45}, {1, 6, 9, 1, 28}}) {
      std::vector<float> tail_v(static_cast<std::size_t>(2 * m * wide)), tail_g(tail_v.size());
      Device<float> d_tail_v = device(tail_v), d_tail_g = device(tail_g);
      std::int64_t at = 0;
      for (const std::int64_t count : chunks) {
        const std::int64_t blocks = (at + count) / m - at / m;
        std::vector<float> out(static_cast<std::size_t>(blocks * dim));
        const CompressSegment s{0, count, at, tail_v.data(), tail_g.data()};
        reference->run(CompressTokensParams{m,
                                            dim,
                                            overlap,
                                            values.data() + at * wide,
                                            gates.data() + at * wide,
                                            bias.data(),
                                            {&s, 1},
                                            out.data()});
        Device<float> d_out = empty(blocks * dim);
        const CompressSegment d_s{0, count, at, d_tail_v.data(), d_tail_g.data()};
        backend_->run(CompressTokensParams{m,
                                           dim,
                                           overlap,
                                           d_values.data() + at * wide,
                                           d_gates.data() + at * wide,
                                           d_bias.data(),
                                           {&d_s, 1},
                                           d_out.data()});
        if (blocks > 0) {
          EXPECT_LT(relative_error(d_out.values(), out), 2e-7);
        }
        EXPECT_EQ(d_tail_v.values(), tail_v);
        EXPECT_EQ(d_tail_g.values(), tail_g);
        at += count;
      }
    }
    const std::int64_t blocks = 2, tokens = (overlap ? 3 : 2) * m;
    std::vector<float> out(static_cast<std::size_t>(blocks * dim));
    ref::compress({blocks, m, dim, overlap, overlap, values.data(), gates.data(), out.data()}, pool_);
    Device<float> d_out = empty(blocks * dim);
    ASSERT_LE(tokens, n);
    backend_->run(
        CompressParams{blocks, m, dim, overlap, overlap, d_values.data(), d_gates.data(), d_out.data()});
    EXPECT_LT(relative_error(d_out.values(), out), 2e-7);
  }
}

// Rows of a sequence: windows and pages, here and on the device.
struct Rows {
  RowShape shape;
  std::int64_t per_page;
  std::vector<std::vector<std::byte>> pages;
  std::vector<std::byte*> host_pages, device_pages;
  std::vector<MemoryBlock> blocks;

  Rows(const RowShape& s, std::int64_t n, std::int64_t each, unsigned seed, Memory& memory)
      : shape(s), per_page(each) {
    auto values = normal(n * s.dim, seed);
    for (std::int64_t i = 0; i < n; ++i) {
      if (i % per_page == 0) pages.emplace_back(static_cast<std::size_t>(64 + per_page * s.bytes()));
      store_row(shape, values.data() + i * s.dim, pages.back().data() + 64, i % per_page);
    }
    for (auto& page : pages) {
      host_pages.push_back(page.data());
      blocks.push_back(MemoryBlock::uninitialised(page.size(), memory));
      blocks.back().write(page.data());
      device_pages.push_back(blocks.back().data());
    }
  }
  PagedRows here() const { return {host_pages.data(), 64, per_page, shape}; }
  PagedRows there() const { return {device_pages.data(), 64, per_page, shape}; }
};

TEST_F(CudaTest, StoredRowsAreTheReferences) {
  for (const RowShape& shape :
       {RowShape{RowFormat::f32, 512, 64}, RowShape{RowFormat::fp8_bf16, 512, 64},
        RowShape{RowFormat::fp8_bf16, 128, 64}, RowShape{RowFormat::fp4_tiles, 128, 0}}) {
    const std::int64_t n = 37;
    const auto x = normal(n * shape.dim, 1);
    const auto bytes = static_cast<std::size_t>(48 * shape.bytes());
    std::vector<std::byte> expected(bytes);
    Device<std::byte> actual = device(expected);
    std::vector<StoreRowsParams::Place> places, on_device;
    for (std::int64_t i = 0; i < n; ++i) {
      places.push_back({n - 1 - i, expected.data(), i});
      on_device.push_back({n - 1 - i, actual.data(), i});
    }
    ref::store_rows({shape, x.data(), places});
    Device<float> d_x = device(x);
    backend_->run(StoreRowsParams{shape, d_x.data(), on_device});
    EXPECT_EQ(actual.values(), expected) << static_cast<int>(shape.format);
  }
}

TEST_F(CudaTest, IndexScoresHaveTheReferencesBits) {
  for (const std::int64_t heads : {4, 64}) {
    for (const auto format : {RowFormat::fp4_tiles, RowFormat::f32}) {
      const std::int64_t dim = heads == 4 ? 64 : 128, t = 3, n = 1000;
      auto q = normal(t * heads * dim, 1);
      ref::quantise({QuantiseParams::Format::e2m1_32, t * heads, dim, dim, q.data()}, pool_);
      const auto weights = normal(t * heads, 2);
      const Rows rows({format, dim, 0}, n, 32, 3, memory());
      const std::vector<std::int64_t> visible = {n, 129, 517};
      std::vector<float> scores(static_cast<std::size_t>(t * n), -1);
      Device<float> d_q = device(q), d_weights = device(weights), d_scores = device(scores);
      ref::index_scores({t, heads, dim, q.data(), weights.data(), rows.here(), visible, n, scores.data()},
                        pool_);
      backend_->run(IndexScoresParams{t, heads, dim, d_q.data(), d_weights.data(), rows.there(), visible, n,
                                      d_scores.data()});
      if (format == RowFormat::fp4_tiles) {
        EXPECT_EQ(d_scores.values(), scores) << heads << " heads";
      } else {
        EXPECT_LT(relative_error(d_scores.values(), scores), 1e-6);
      }
    }
  }
}

TEST_F(CudaTest, IndexSelectionIsTheReferences) {
  const std::int64_t heads = 64, dim = 128;
  for (const std::int64_t k : {8, 512}) {
    for (const std::int64_t n : {300, 1200, 9000}) {
      const std::int64_t t = 5;
      auto q = normal(t * heads * dim, 1);
      ref::quantise({QuantiseParams::Format::e2m1_32, t * heads, dim, dim, q.data()}, pool_);
      auto weights = normal(t * heads, 2);
      std::fill_n(weights.begin(), heads, 0.0F);  // all scores of the first token are equal
      const Rows rows({RowFormat::fp4_tiles, dim, 0}, n, 32, 3, memory());
      const std::vector<std::int64_t> visible = {n, n, n / 2, n - 1, 3};
      std::vector<std::int32_t> indices(static_cast<std::size_t>(t * k));
      ref::index_select({t, heads, dim, k, q.data(), weights.data(), rows.here(), visible, indices.data()},
                        pool_);
      Device<float> d_q = device(q), d_weights = device(weights);
      Device<std::int32_t> d_indices = empty<std::int32_t>(t * k);
      // In two calls, which become one launch.
      backend_->run(IndexSelectParams{2, heads, dim, k, d_q.data(), d_weights.data(), rows.there(),
                                      std::span(visible).first(2), d_indices.data()});
      backend_->run(IndexSelectParams{3, heads, dim, k, d_q.data() + 2 * heads * dim,
                                      d_weights.data() + 2 * heads, rows.there(),
                                      std::span(visible).subspan(2), d_indices.data() + 2 * k});
      EXPECT_EQ(d_indices.values(), indices) << "k " << k << ", n " << n;
    }
  }
}

TEST_F(CudaTest, AttentionMatchesReferenceAndItself) {
  struct Shape {
    RowFormat format;
    std::int64_t heads, dim;
  };
  for (const Shape& s : {Shape{RowFormat::f32, 4, 128}, Shape{RowFormat::fp8_bf16, 4, 128},
                         Shape{RowFormat::fp8_bf16, 64, 512}, Shape{RowFormat::f32, 16, 512},
                         Shape{RowFormat::fp8_bf16, 16, 128}}) {
    const std::int64_t rope = 64, w = 32, n_rows = 400, start = 1600, most = 80, k = 70;
    const RowShape shape{s.format, s.dim, rope};
    const Rows rows(shape, n_rows + most / 4, 32, 3, memory());
    // The window before `start`, and fresh rows as the state would keep them.
    const auto history = normal(w * s.dim, 4);
    std::vector<std::byte> ring(static_cast<std::size_t>(w * shape.bytes()));
    for (std::int64_t i = 0; i < w; ++i) store_row(shape, history.data() + i * s.dim, ring.data(), i);
    auto kv = normal(most * s.dim, 5);
    if (s.format != RowFormat::f32) {
      ref::quantise({QuantiseParams::Format::e4m3_64, most, s.dim, s.dim - rope, kv.data()}, pool_);
      ref::round_bf16({most, s.dim, s.dim - rope, kv.data()});
    }
    const auto q = normal(most * s.heads * s.dim, 6, 2), sink = normal(s.heads, 7);
    std::vector<std::int64_t> visible;
    std::vector<std::int32_t> selected;
    std::mt19937 generator(8);
    for (std::int64_t t = 0; t < most; ++t) {
      visible.push_back((start + t + 1) / 4);
      std::vector<std::int32_t> ids(static_cast<std::size_t>(visible.back()));
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), generator);
      std::sort(ids.begin(), ids.begin() + k);
      selected.insert(selected.end(), ids.begin(), ids.begin() + k);
    }
    Device<float> d_q = device(q), d_kv = device(kv), d_sink = device(sink);
    Device<std::byte> d_ring = device(ring);
    Device<std::int32_t> d_selected = device(selected);
    for (const bool selects : {false, true}) {
      std::vector<float> expected(static_cast<std::size_t>(most * s.heads * s.dim));
      const AttentionSegment segment{0, most, start, ring.data(), rows.here()};
      ref::sparse_attention({most,
                             s.heads,
                             shape,
                             q.data(),
                             kv.data(),
                             {&segment, 1},
                             w,
                             visible,
                             k,
                             selects ? selected.data() : nullptr,
                             sink.data(),
                             expected.data()},
                            pool_);
      const auto run = [&](std::int64_t n) {
        const AttentionSegment on_device{0, n, start, d_ring.data(), rows.there()};
        Device<float> out = empty(n * s.heads * s.dim);
        backend_->run(SparseAttentionParams{n,
                                            s.heads,
                                            shape,
                                            d_q.data(),
                                            d_kv.data(),
                                            {&on_device, 1},
                                            w,
                                            std::span(visible).first(static_cast<std::size_t>(n)),
                                            k,
                                            selects ? d_selected.data() : nullptr,
                                            d_sink.data(),
                                            out.data()});
        return out.values();
      };
      const auto all = run(most);
      EXPECT_LT(relative_error(all, expected), 1.5e-6)
          << static_cast<int>(s.format) << " " << s.heads << " " << s.dim;
      for (const std::int64_t n : {1, 3, 40}) expect_same(run(n), all, n);
    }
  }
}

// The same launches over new data: from the second time on a graph.
TEST_F(CudaTest, ReplaysReadNewData) {
  const std::int64_t dim = 64;
  const Matrix table(Linear::Format::bf16, 50, dim, 3, memory());
  const Linear on_device = table.on_device();
  Device<float> out = empty(2 * dim);
  for (std::int32_t i = 0; i < 6; ++i) {
    const std::vector<std::int32_t> tokens = {i, 49 - i};
    std::vector<float> expected(2 * dim);
    ref::embed({tokens, &table.linear, 1, expected.data()}, pool_);
    backend_->run(EmbedParams{tokens, &on_device, 1, out.data()});
    EXPECT_EQ(out.values(), expected) << i;
  }
}

}  // namespace
}  // namespace hadal
