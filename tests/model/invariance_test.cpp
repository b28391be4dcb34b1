// The bitwise promise of the forward: the logits of a token are the same for any chunking of the prompt, by
// decode as by prefill, in any company, on any number of threads, and after any detour of the state. All of
// these compare with ==.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include <gtest/gtest.h>

#include "base/rng.h"
#include "golden_data.h"
#include "model/transformer.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

struct Setting {
  std::string model;
  Numerics numerics;
  std::string backend;
  std::string isa;
  StateFormat format = StateFormat::f32;
};

std::string setting_name(const Setting& setting) {
  return setting.model.substr(0, 2) + "_" + std::string(to_string(setting.numerics)) + "_" + setting.backend +
         setting.isa + (setting.format == StateFormat::compact ? "_compact" : "");
}
void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting_name(setting);
}

class InvarianceTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    auto model = Model::load(test::reference_directory() / "models" / GetParam().model);
    ASSERT_TRUE(model.has_value()) << model.error().message();
    model_ = std::make_unique<Model>(std::move(*model));
    if (const auto backend = make_backend(GetParam().backend, GetParam().isa, pool_); !backend)
      GTEST_SKIP() << backend.error().message();
    run_.emplace(*this, pool_);
    // Random tokens, not the selected ones: these promises hold everywhere.
    const Philox random(1, 2);
    for (std::uint64_t i = 0; i < 200; ++i)
      tokens_.push_back(static_cast<std::int32_t>(random.block(i)[0] % 320));
    whole_ = prefill(run_->transformer, tokens_, {tokens_.size()});
  }

  struct Runner {
    Runner(InvarianceTest& test, ThreadPool& pool)
        : backend(std::move(*make_backend(GetParam().backend, GetParam().isa, pool))),
          transformer(*test.model_, *backend, GetParam().numerics) {}
    std::unique_ptr<Backend> backend;
    Transformer transformer;
  };

  static void append(Transformer& transformer, SequenceState& state, std::span<const std::int32_t> part,
                     std::vector<float>& rows) {
    const BatchItem item{&state, part, BatchItem::Logits::all};
    const auto logits = transformer.forward({&item, 1});
    ASSERT_TRUE(logits.has_value());
    rows.insert(rows.end(), logits->begin(), logits->end());
  }
  // Logits of all tokens, read in chunks of these sizes, the last repeated to the end.
  std::vector<float> prefill(Transformer& transformer, std::span<const std::int32_t> tokens,
                             std::vector<std::size_t> chunks) const {
    SequenceState state(layout());
    std::vector<float> rows;
    for (std::size_t i = 0; !tokens.empty(); ++i) {
      const std::size_t count = std::min(chunks[std::min(i, chunks.size() - 1)], tokens.size());
      append(transformer, state, tokens.first(count), rows);
      tokens = tokens.subspan(count);
    }
    return rows;
  }
  static bool same(std::span<const float> a, std::span<const float> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
  }
  std::span<const float> whole_from(std::size_t token) const {
    return std::span(whole_).subspan(token * static_cast<std::size_t>(model_->config().vocab_size));
  }

  const StateLayout& layout() const { return model_->state_layout(GetParam().format); }

  ThreadPool pool_{2};
  std::unique_ptr<Model> model_;
  std::optional<Runner> run_;
  std::vector<std::int32_t> tokens_;
  std::vector<float> whole_;
};

TEST_P(InvarianceTest, AnyChunking) {
  for (const std::vector<std::size_t>& chunks : std::vector<std::vector<std::size_t>>{
           {1}, {2}, {3, 5, 1, 7}, {127, 1, 64}, {128}, {129}, {7, 200, 1}}) {
    EXPECT_TRUE(same(prefill(run_->transformer, tokens_, chunks), whole_)) << "first chunk " << chunks[0];
  }
}

TEST_P(InvarianceTest, AnyNumberOfThreads) {
  for (const int threads : {1, 3, 5}) {
    ThreadPool pool(threads);
    Runner other(*this, pool);
    EXPECT_TRUE(same(prefill(other.transformer, tokens_, {100, 1, 1, 50}), whole_)) << threads << " threads";
  }
}

TEST_P(InvarianceTest, AnyCompany) {
  // Three sequences, the second of which is ours, advance together by uneven steps: prefill chunks beside
  // decode steps, of other tokens and at other positions.
  std::vector<std::vector<std::int32_t>> others(2, tokens_);
  std::reverse(others[0].begin(), others[0].end());
  std::rotate(others[1].begin(), others[1].begin() + 77, others[1].end());
  SequenceState a(layout()), b(layout()), c(layout());
  std::size_t at_a = 0, at_b = 0, at_c = 0;
  std::vector<float> rows;
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  for (std::size_t step = 0; at_b < tokens_.size(); ++step) {
    const auto take = [&](std::size_t at, std::size_t wanted) {
      return std::min(wanted, tokens_.size() - at);
    };
    const std::size_t n_a = take(at_a, step % 3 == 0 ? 31 : 1), n_b = take(at_b, step % 2 == 0 ? 1 : 9),
                      n_c = take(at_c, 5);
    std::vector<BatchItem> batch;
    if (n_a > 0) batch.push_back({&a, std::span(others[0]).subspan(at_a, n_a), BatchItem::Logits::none});
    batch.push_back({&b, std::span(tokens_).subspan(at_b, n_b), BatchItem::Logits::all});
    if (n_c > 0) batch.push_back({&c, std::span(others[1]).subspan(at_c, n_c), BatchItem::Logits::last});
    const auto logits = run_->transformer.forward(batch);
    ASSERT_TRUE(logits.has_value());
    rows.insert(rows.end(), logits->begin(), logits->begin() + static_cast<std::ptrdiff_t>(n_b * vocab));
    at_a += n_a, at_b += n_b, at_c += n_c;
  }
  EXPECT_TRUE(same(rows, whole_));
}

TEST_P(InvarianceTest, ForkAndTruncate) {
  SequenceState state(layout());
  std::vector<float> rows;
  append(run_->transformer, state, std::span(tokens_).first(128), rows);
  state.keep_checkpoint();
  append(run_->transformer, state, std::span(tokens_).subspan(128, 62), rows);

  // A fork that reads something else leaves the original alone.
  SequenceState fork = state.fork();
  std::vector<float> ignored;
  append(run_->transformer, fork, std::span(tokens_).first(90), ignored);
  rows.clear();
  append(run_->transformer, state, std::span(tokens_).subspan(190), rows);
  EXPECT_TRUE(same(rows, whole_from(190)));

  // Both go back to the kept page boundary and read the rest again.
  for (SequenceState* rewound : {&fork, &state}) {
    ASSERT_TRUE(rewound->truncate(128).has_value());
    EXPECT_EQ(rewound->length(), 128);
    rows.clear();
    append(run_->transformer, *rewound, std::span(tokens_).subspan(128), rows);
    EXPECT_TRUE(same(rows, whole_from(128)));
  }
  const Status nowhere = state.truncate(150);
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_NE(nowhere.error().message().find("nearest kept point before it is 128"), std::string::npos);
  ASSERT_TRUE(state.truncate(0).has_value());
  rows.clear();
  append(run_->transformer, state, tokens_, rows);
  EXPECT_TRUE(same(rows, whole_));
}

TEST_P(InvarianceTest, SaveAndLoad) {
  const auto path = std::filesystem::path(testing::TempDir()) / ("hadal_state_" + std::to_string(::getpid()));
  for (const std::size_t cut : {1, 6, 133, 192}) {
    SequenceState state(layout());
    std::vector<float> rows;
    append(run_->transformer, state, std::span(tokens_).first(cut), rows);
    ASSERT_TRUE(state.save(path, 7).has_value());
    auto loaded = SequenceState::load(layout(), path, 7);
    ASSERT_TRUE(loaded.has_value()) << loaded.error().message();
    rows.clear();
    append(run_->transformer, *loaded, std::span(tokens_).subspan(cut), rows);
    EXPECT_TRUE(same(rows, whole_from(cut))) << "cut at " << cut;
  }
  EXPECT_FALSE(SequenceState::load(layout(), path, 8).has_value()) << "other numerics";
  const StateFormat other = layout().format == StateFormat::f32 ? StateFormat::compact : StateFormat::f32;
  const auto refused = SequenceState::load(model_->state_layout(other), path, 7);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("state format"), std::string::npos);
  // Damage anywhere is noticed.
  const auto size = std::filesystem::file_size(path);
  for (const auto at : {std::uintmax_t{3}, std::uintmax_t{30}, size / 2, size - 1}) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const int before = file.get();
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(before ^ 1));
    file.close();
    EXPECT_FALSE(SequenceState::load(layout(), path, 7).has_value()) << "byte " << at;
    std::fstream restore(path, std::ios::in | std::ios::out | std::ios::binary);
    restore.seekp(static_cast<std::streamoff>(at));
    restore.put(static_cast<char>(before));
  }
  EXPECT_TRUE(SequenceState::load(layout(), path, 7).has_value());
  std::filesystem::resize_file(path, size - 5);
  EXPECT_FALSE(SequenceState::load(layout(), path, 7).has_value()) << "truncated";
  std::filesystem::remove(path);
}

TEST_P(InvarianceTest, MtpInChunks) {
  if (model_->weights().mtp.empty()) GTEST_SKIP() << "this model has no MTP block";
  const std::size_t n = tokens_.size() - 1;
  SequenceState state(layout());
  std::vector<float> rows;
  append(run_->transformer, state, tokens_, rows);
  const std::vector<float> streams(run_->transformer.streams().begin(), run_->transformer.streams().end());
  const std::size_t width = streams.size() / tokens_.size();
  const auto draft = [&](std::vector<std::size_t> chunks) {
    SequenceState fresh = state.fork();
    std::vector<float> drafted;
    for (std::size_t at = 0, i = 0; at < n; ++i) {
      const std::size_t count = std::min(chunks[i % chunks.size()], n - at);
      const auto logits =
          run_->transformer.forward_mtp(fresh, std::span(streams).subspan(at * width, count * width),
                                        std::span(tokens_).subspan(at + 1, count));
      EXPECT_TRUE(logits.has_value());
      drafted.insert(drafted.end(), logits->begin(), logits->end());
      at += count;
    }
    return drafted;
  };
  EXPECT_TRUE(same(draft({1, 30, 2}), draft({n})));
}

TEST_P(InvarianceTest, BadTokensChangeNothing) {
  SequenceState state(layout());
  std::vector<float> rows;
  append(run_->transformer, state, std::span(tokens_).first(5), rows);
  for (const std::int32_t id : {-1, 320, 1 << 30}) {
    const std::vector<std::int32_t> bad = {1, id};
    const BatchItem item{&state, bad, BatchItem::Logits::all};
    const auto refused = run_->transformer.forward({&item, 1});
    ASSERT_FALSE(refused.has_value());
    EXPECT_NE(refused.error().message().find("ids 0 to 319"), std::string::npos);
  }
  const std::vector<std::int32_t> too_long(static_cast<std::size_t>(model_->config().max_position_embeddings),
                                           1);
  const BatchItem item{&state, too_long, BatchItem::Logits::last};
  const auto refused = run_->transformer.forward({&item, 1});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::resource_exhausted);
  append(run_->transformer, state, std::span(tokens_).subspan(5), rows);
  EXPECT_TRUE(same(rows, whole_));
}

// Rounds the rope entries of every row that is about to be stored. What a tap sees is the forward's own
// memory, so this changes the run.
class RopeRounder : public Tap {
 public:
  RopeRounder(std::int64_t dim, std::int64_t rope_dim) : dim_(dim), rope_dim_(rope_dim) {}
  void floats(const std::string& name, const float* data, const Shape& shape) override {
    if (!name.ends_with("attn.kv_window") && !name.ends_with("attn.kv_compressed")) return;
    auto* rows = const_cast<float*>(data);
    for (std::int64_t r = 0; r < shape[0]; ++r) {
      for (float* x = rows + (r + 1) * dim_ - rope_dim_; x < rows + (r + 1) * dim_; ++x) {
        changed_ += *x != bf16_to_f32(f32_to_bf16(*x));
        *x = bf16_to_f32(f32_to_bf16(*x));
      }
    }
  }
  void ints(const std::string&, const std::int32_t*, const Shape&) override {}
  std::int64_t changed() const { return changed_; }

 private:
  std::int64_t dim_, rope_dim_, changed_ = 0;
};

TEST_P(InvarianceTest, CompactIsFloatsWithRopeEntriesRounded) {
  if (layout().format == StateFormat::f32) GTEST_SKIP() << "this is about compact";
  if (!run_->backend->memory().on_host()) GTEST_SKIP() << "what a tap sees is a copy of the forward's memory";
  SequenceState state(model_->state_layout(StateFormat::f32));
  RopeRounder rounder(model_->config().head_dim, model_->config().qk_rope_head_dim);
  run_->transformer.set_tap(&rounder);
  std::vector<float> rows;
  for (std::size_t at = 0; at < tokens_.size(); at += 40)
    append(run_->transformer, state, std::span(tokens_).subspan(at, 40), rows);
  EXPECT_GT(rounder.changed(), 0);
  EXPECT_TRUE(same(rows, whole_));
}

INSTANTIATE_TEST_SUITE_P(
    All, InvarianceTest,
    testing::Values(Setting{"t1-m2", Numerics::official, "cpu", ""},
                    Setting{"t1-m2", Numerics::exact, "cpu", ""},
                    Setting{"t1-m2", Numerics::qsim, "cpu", "avx2"},
                    Setting{"t2-m2", Numerics::official, "cpu", "scalar"},
                    Setting{"t2-m2", Numerics::official, "ref", ""},
                    Setting{"t1-m2", Numerics::official, "cpu", "", StateFormat::compact},
                    Setting{"t2-m2", Numerics::qsim, "cpu", "avx2", StateFormat::compact},
                    Setting{"t1-m2", Numerics::int8, "cpu", ""},
                    Setting{"t2-m2", Numerics::int8, "cpu", "scalar", StateFormat::compact},
                    Setting{"t2-m2", Numerics::official, "ref", "", StateFormat::compact},
                    Setting{"t1-m2", Numerics::official, "cuda", ""},
                    Setting{"t1-m2", Numerics::exact, "cuda", ""},
                    Setting{"t1-m2", Numerics::official, "cuda", "", StateFormat::compact},
                    Setting{"t2-m2", Numerics::qsim, "cuda", "", StateFormat::compact}),
    [](const auto& test) { return setting_name(test.param); });

}  // namespace
}  // namespace hadal
