// kernels.safetensors: number formats, quantisers, GEMMs, Sinkhorn, Hadamard, attention, rotary tables and
// RMSNorm as the official kernels compute them. Codes are compared for equality.
#include <cmath>

#include <gtest/gtest.h>

#include "golden_data.h"
#include "model/rope.h"
#include "ops/backend.h"
#include "ops/ref/ref.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

using test::GoldenFile;

class KernelVectors : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    golden_ =
        std::make_unique<GoldenFile>(GoldenFile::open(test::reference_directory() / "kernels.safetensors"));
  }
  static void TearDownTestSuite() { golden_.reset(); }

  static std::vector<float> floats(const std::string& name) { return golden_->floats(name); }
  static std::vector<std::uint8_t> bytes(const std::string& name) {
    return golden_->values<std::uint8_t>(name);
  }
  static std::int64_t dim(const std::string& name, std::size_t axis) { return golden_->at(name).shape[axis]; }
  static void expect_near(const std::vector<float>& actual, const std::vector<float>& expected,
                          float relative, float absolute) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      EXPECT_NEAR(actual[i], expected[i], absolute + relative * std::fabs(expected[i])) << "at " << i;
    }
  }

  static std::unique_ptr<GoldenFile> golden_;
  ThreadPool pool_{2};
};
std::unique_ptr<GoldenFile> KernelVectors::golden_;

TEST_F(KernelVectors, RoundE4m3) {
  const auto x = floats("round_e4m3.x");
  const auto codes = bytes("round_e4m3.code");
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(f32_to_e4m3(x[i]), codes[i]) << x[i];
}

TEST_F(KernelVectors, RoundE2m1) {
  const auto x = floats("round_e2m1.x");
  const auto codes = bytes("round_e2m1.code");
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(f32_to_e2m1(x[i]), codes[i] & 15) << x[i];
}

TEST_F(KernelVectors, DecodeTables) {
  const auto e4m3 = floats("e4m3.decode");
  for (std::size_t i = 0; i < 256; ++i) {
    if (std::isnan(e4m3[i])) {
      EXPECT_TRUE(std::isnan(kE4m3ToF32[i])) << i;
    } else {
      EXPECT_EQ(kE4m3ToF32[i], e4m3[i]) << i;
    }
  }
  const auto e2m1 = floats("e2m1.decode");
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(kE2m1ToF32[i], e2m1[i]) << i;
}

TEST_F(KernelVectors, Quantisers) {
  struct Quantiser {
    const char* name;
    std::int64_t block;
    std::uint8_t (*quantise)(float*, std::int64_t, std::uint8_t*);
  };
  for (const Quantiser& q : {Quantiser{"act_quant64", 64, ref::quantise_e4m3_block},
                             Quantiser{"act_quant128", 128, ref::quantise_e4m3_block},
                             Quantiser{"fp4_act_quant32", 32, ref::quantise_e2m1_block}}) {
    const std::string name = q.name;
    auto x = floats(name + ".x");
    const auto codes = bytes(name + ".code"), scales = bytes(name + ".scale_e8m0");
    const auto expected = floats(name + ".dequant");
    std::vector<std::uint8_t> actual(x.size());
    for (std::size_t b = 0; b * static_cast<std::size_t>(q.block) < x.size(); ++b) {
      const std::size_t at = b * static_cast<std::size_t>(q.block);
      EXPECT_EQ(q.quantise(x.data() + at, q.block, actual.data() + at), scales[b]) << name << " block " << b;
    }
    EXPECT_EQ(actual, codes) << name;
    EXPECT_EQ(x, expected) << name;
  }
}

TEST_F(KernelVectors, QuantisedGemms) {
  for (const std::string name : {"fp8_gemm", "fp4_gemm"}) {
    const bool fp8 = name == "fp8_gemm";
    const TensorRef& w = golden_->at(name + (fp8 ? ".w" : ".w_packed"));
    const Linear weight{w.shape[0], fp8 ? w.shape[1] : 2 * w.shape[1],
                        fp8 ? Linear::Format::fp8 : Linear::Format::fp4, w.data,
                        reinterpret_cast<const std::uint8_t*>(golden_->at(name + ".w_scale").data)};
    const auto x = floats(name + ".x");
    const auto exact = floats(name + ".y64");
    for (const auto& [backend_name, isa] :
         {std::pair{"ref", ""}, std::pair{"cpu", "avx512bf16"}, std::pair{"cpu", "avx512vnni"},
          std::pair{"cpu", "avx512"}, std::pair{"cpu", "avx2vnni"}, std::pair{"cpu", "avx2"},
          std::pair{"cpu", "scalar"}}) {
      const auto backend = make_backend(backend_name, isa, pool_);
      if (!backend) continue;  // not on this machine
      std::vector<float> y(exact.size());
      (*backend)->run(LinearParams{dim(name + ".x", 0), x.data(), &weight, 1, InputRounding::e4m3, y.data()});
      expect_near(y, exact, 2e-6F, 2e-5F);
    }
  }
}

TEST_F(KernelVectors, HyperConnectionSplit) {
  for (const auto& [name, n, iterations] :
       {std::tuple{"hc4", 4, 20}, std::tuple{"hc2", 2, 20}, std::tuple{"hc4_iters2", 4, 2}}) {
    const std::string p = name;
    const auto mixes = floats(p + ".mixes"), scale = floats(p + ".scale"), base = floats(p + ".base");
    const auto rows = static_cast<std::size_t>(dim(p + ".mixes", 0)), size = static_cast<std::size_t>(n);
    std::vector<float> pre(rows * size), post(rows * size), comb(rows * size * size);
    for (std::size_t r = 0; r < rows; ++r) {
      ref::hc_split_sinkhorn(mixes.data() + r * (2 + size) * size, scale.data(), base.data(), n, iterations,
                             1e-6F, pre.data() + r * size, post.data() + r * size,
                             comb.data() + r * size * size);
    }
    expect_near(pre, floats(p + ".pre"), 1e-6F, 1e-7F);
    expect_near(post, floats(p + ".post"), 1e-6F, 1e-7F);
    expect_near(comb, floats(p + ".comb"), 2e-6F, 1e-6F);
  }
}

TEST_F(KernelVectors, Hadamard) {
  for (const std::string name : {"hadamard64", "hadamard128"}) {
    auto x = floats(name + ".x");
    ref::hadamard({dim(name + ".x", 0), dim(name + ".x", 1), x.data()}, pool_);
    expect_near(x, floats(name + ".y"), 1e-6F, 1e-6F);
  }
}

TEST_F(KernelVectors, SparseAttention) {
  const auto q = floats("sparse_attn.q"), kv = floats("sparse_attn.kv"), sink = floats("sparse_attn.sink");
  const auto indices = golden_->values<std::int32_t>("sparse_attn.idx");
  const std::int64_t tokens = dim("sparse_attn.q", 0), heads = dim("sparse_attn.q", 1),
                     width = dim("sparse_attn.q", 2);
  const std::int64_t listed = dim("sparse_attn.idx", 1);
  // All rows in one page, no window.
  const RowShape row{RowFormat::f32, width, 0};
  const auto* page = reinterpret_cast<const std::byte*>(kv.data());
  const AttentionSegment segment{0, tokens, 0, nullptr, {&page, 0, dim("sparse_attn.kv", 0), row}};
  std::vector<std::int32_t> selected(indices.size(), -1);
  std::vector<std::int64_t> visible;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < listed; ++i) {
      const std::int32_t chosen = indices[static_cast<std::size_t>(t * listed + i)];
      if (chosen >= 0) selected[static_cast<std::size_t>(t * listed + n++)] = chosen;
    }
    visible.push_back(n);
  }
  for (const auto& [name, isa] :
       {std::pair{"ref", ""}, std::pair{"cpu", "avx512bf16"}, std::pair{"cpu", "avx512vnni"},
        std::pair{"cpu", "avx512"}, std::pair{"cpu", "avx2vnni"}, std::pair{"cpu", "avx2"},
        std::pair{"cpu", "scalar"}}) {
    const auto backend = make_backend(name, isa, pool_);
    if (!backend) continue;
    std::vector<float> out(q.size());
    (*backend)->run(SparseAttentionParams{tokens,
                                          heads,
                                          row,
                                          q.data(),
                                          nullptr,
                                          {&segment, 1},
                                          0,
                                          visible,
                                          listed,
                                          selected.data(),
                                          sink.data(),
                                          out.data()});
    expect_near(out, floats("sparse_attn.o"), 1e-5F, 1e-6F);
  }
}

TEST_F(KernelVectors, RotaryTables) {
  struct Set {
    const char* name;
    double base;
    std::optional<YarnScaling> yarn;
  };
  YarnScaling t1;
  t1.original_max_position_embeddings = 64;
  const auto positions = golden_->values<std::int64_t>("rope.positions");
  for (const Set& set : {Set{"base_theta1e4", 10000, std::nullopt}, Set{"t1_compress_yarn", 160000, t1},
                         Set{"t2_compress_noyarn", 160000, std::nullopt},
                         Set{"published_compress_yarn", 160000, YarnScaling{}}}) {
    const std::string p = std::string("rope.") + set.name;
    const RotaryFrequencies frequencies(64, set.base, set.yarn);
    expect_near({frequencies.values().begin(), frequencies.values().end()}, floats(p + ".freqs"), 1.2e-7F, 0);
    std::vector<float> cos(positions.size() * 32), sin(cos.size());
    frequencies.angles(positions, cos.data(), sin.data());
    // A frequency one unit off in its last place turns position 10^6 by 0.06; equal frequencies do not.
    expect_near(cos, floats(p + ".cos"), 0, 2e-7F);
    expect_near(sin, floats(p + ".sin"), 0, 2e-7F);
  }
}

TEST_F(KernelVectors, RotaryApplication) {
  YarnScaling t1;
  t1.original_max_position_embeddings = 64;
  const RotaryFrequencies frequencies(64, 160000, t1);
  const std::vector<std::int64_t> positions = {10, 11, 12, 13};
  std::vector<float> cos(4 * 32), sin(4 * 32);
  frequencies.angles(positions, cos.data(), sin.data());
  for (const bool inverse : {false, true}) {
    auto x = floats("rope.apply.x");
    ref::rope({4, 2, 64, 64, cos.data(), sin.data(), inverse, x.data()}, pool_);
    expect_near(x, floats(inverse ? "rope.apply.y_inverse" : "rope.apply.y"), 1e-6F, 1e-6F);
  }
}

TEST_F(KernelVectors, RmsNorm) {
  const auto x = floats("rmsnorm.x"), w = floats("rmsnorm.w");
  std::vector<float> y(x.size());
  ref::rms_norm({4, 256, x.data(), w.data(), 1e-6F, y.data()}, pool_);
  expect_near(y, floats("rmsnorm.y"), 1e-6F, 1e-7F);
}

}  // namespace
}  // namespace hadal
