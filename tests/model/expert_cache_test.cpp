// Experts on disk under a memory budget: the logits are those of the mapped model bit for bit, whatever the
// number of slots; what the cache keeps; what it says when the disk fails.
#include "model/expert_cache.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "formats/safetensors_image.h"
#include "golden_data.h"
#include "model/init.h"
#include "model/transformer.h"

namespace hadal {
namespace {

namespace fs = std::filesystem;
using test::TemporaryDirectory;
using testing::HasSubstr;

std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab) {
  const Philox random(3, 1);
  std::vector<std::int32_t> tokens;
  for (std::uint64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(random.uniform(i) * static_cast<double>(vocab)));
  return tokens;
}

// Logits of all tokens, read in chunks of these sizes, the last repeated.
std::vector<float> read_in_chunks(Transformer& transformer, std::span<const std::int32_t> tokens,
                                  const std::vector<std::size_t>& chunks) {
  SequenceState state(transformer.model().state_layout());
  std::vector<float> rows;
  for (std::size_t i = 0; !tokens.empty(); ++i) {
    const auto part = tokens.first(std::min(chunks[std::min(i, chunks.size() - 1)], tokens.size()));
    tokens = tokens.subspan(part.size());
    const BatchItem item{&state, part, BatchItem::Logits::all};
    const auto logits = transformer.forward({&item, 1});
    EXPECT_TRUE(logits.has_value()) << logits.error().message();
    if (!logits) return {};
    rows.insert(rows.end(), logits->begin(), logits->end());
  }
  return rows;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

struct Setting {
  std::string model;
  Numerics numerics;
  std::string backend, isa;
};
void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.model << to_string(setting.numerics) << setting.backend << setting.isa;
}

class StreamedModelTest : public testing::TestWithParam<Setting> {};

TEST_P(StreamedModelTest, LogitsAreThoseOfTheMappedModel) {
  const fs::path directory = test::reference_directory() / "models" / GetParam().model;
  if (!fs::exists(directory)) GTEST_SKIP() << "set HADAL_REFERENCE";
  ThreadPool pool(2);
  auto backend = make_backend(GetParam().backend, GetParam().isa, pool);
  if (!backend) GTEST_SKIP() << backend.error().message();
  const auto mapped = Model::load(directory);
  ASSERT_TRUE(mapped.has_value()) << mapped.error().message();
  Transformer expected(*mapped, **backend, GetParam().numerics);
  const auto tokens = random_tokens(60, mapped->config().vocab_size);
  const std::vector<float> whole = read_in_chunks(expected, tokens, {tokens.size()});

  for (const std::int64_t more : {0, 9}) {
    const std::int64_t slots = ExpertCache::least_slots(mapped->config().num_experts_per_tok) + more;
    const MemoryBudget memory{.bytes = std::int64_t{1} << 30, .chunk_tokens = 60, .most_slots = slots};
    const auto model = Model::load(directory, {}, memory);
    ASSERT_TRUE(model.has_value()) << model.error().message();
    EXPECT_EQ(model->weights().layers[0].ffn.experts[0].w1.weight, nullptr);
    Transformer transformer(*model, **backend, GetParam().numerics);
    for (const std::vector<std::size_t>& chunks :
         std::vector<std::vector<std::size_t>>{{60}, {31, 1, 1, 1, 1, 5}}) {
      EXPECT_TRUE(same(read_in_chunks(transformer, tokens, chunks), whole))
          << model->expert_cache()->slots() << " slots, first chunk " << chunks[0];
    }
    const ExpertCache::Statistics seen = model->expert_cache()->statistics();
    EXPECT_GT(seen.misses, 0);
    EXPECT_GT(seen.prefetch_hits, 0);
    EXPECT_GE(seen.bytes_read, seen.miss_bytes_read);
  }
}

INSTANTIATE_TEST_SUITE_P(All, StreamedModelTest,
                         testing::Values(Setting{"t1-m2", Numerics::official, "cpu", ""},
                                         Setting{"t1-m2", Numerics::qsim, "cpu", ""},
                                         Setting{"t1-m2", Numerics::exact, "cpu", ""},
                                         Setting{"t1-m2", Numerics::official, "cpu", "avx2"},
                                         Setting{"t1-m2", Numerics::official, "cpu", "scalar"},
                                         Setting{"t1-m2", Numerics::official, "ref", ""},
                                         Setting{"t2-m2", Numerics::official, "cpu", ""},
                                         Setting{"t2-m0", Numerics::exact, "cpu", ""}));

// Five layers and an MTP block of 16 experts each, 4 for a token.
class ExpertCacheTest : public testing::Test {
 protected:
  void SetUp() override { make(128, 128, 5); }
  void make(std::int64_t hidden_size, std::int64_t inter, std::int64_t layers) {
    Config config = *preset_config("flash");
    config.vocab_size = 512;
    config.hidden_size = hidden_size;
    config.num_attention_heads = 4;
    config.head_dim = 128;
    config.q_lora_rank = 128;
    config.o_groups = 2;
    config.o_lora_rank = 64;
    config.sliding_window = 16;
    config.index_n_heads = 4;
    config.index_head_dim = 64;
    config.index_topk = 16;
    config.n_routed_experts = 16;
    config.num_experts_per_tok = 4;
    config.moe_intermediate_size = inter;
    config.max_position_embeddings = 4096;
    config = *cut_config(std::move(config), layers, 0);
    ThreadPool pool(2);
    InitOptions options;
    options.shard_bytes = 400'000;  // experts are spread over files
    options.force = true;
    ASSERT_TRUE(init_checkpoint(config, directory_ / "m", options, pool).has_value());
    auto mapped = Model::load(directory_ / "m");
    ASSERT_TRUE(mapped.has_value()) << mapped.error().message();
    mapped_.emplace(std::move(*mapped));
  }

  // The model under a budget that gives it so many slots more than the least.
  Model streamed(std::int64_t more) const {
    const MemoryBudget memory{
        .bytes = std::int64_t{1} << 30, .chunk_tokens = 64, .most_slots = ExpertCache::least_slots(4) + more};
    auto model = Model::load(directory_ / "m", {}, memory);
    EXPECT_TRUE(model.has_value()) << model.error().message();
    return std::move(*model);
  }

  // Takes all waves of a block; what they hold must be what the mapped file holds.
  void take(ExpertCache& cache, std::int64_t block, const std::vector<std::int32_t>& wanted) const {
    cache.begin_forward(1, {});
    cache.want(block, wanted);
    std::vector<std::int32_t> got;
    for (bool last = false; !last;) {
      const auto wave = cache.next();
      ASSERT_TRUE(wave.has_value()) << wave.error().message();
      last = wave->last;
      for (std::size_t e = 0; e < wave->experts.size(); ++e) {
        const Expert& expert = wave->experts[e];
        EXPECT_EQ(expert.w1.format, Linear::Format::fp4)
            << "the shape of expert " << e << ", in memory or not";
        if (!expert.has_weights()) continue;
        got.push_back(static_cast<std::int32_t>(e));
        const Expert& on_disk = mapped_->weights().layers[static_cast<std::size_t>(block)].ffn.experts[e];
        for (const auto& [here, there] : {std::pair(expert.w1, on_disk.w1), std::pair(expert.w2, on_disk.w2),
                                          std::pair(expert.w3, on_disk.w3)}) {
          const auto bytes = static_cast<std::size_t>(here.out * here.row_bytes());
          EXPECT_EQ(std::memcmp(here.weight, there.weight, bytes), 0) << "expert " << e;
          EXPECT_EQ(std::memcmp(here.scale, there.scale, static_cast<std::size_t>(here.out * here.in / 32)),
                    0);
        }
      }
    }
    cache.finish();
    std::vector<std::int32_t> sorted = wanted;
    std::sort(sorted.begin(), sorted.end());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    EXPECT_EQ(got, sorted) << "each once, ascending";
  }

  TemporaryDirectory directory_;
  std::optional<Model> mapped_;
};

TEST_F(ExpertCacheTest, WavesHoldTheFilesBytesInAscendingOrder) {
  const Model model = streamed(0);
  ExpertCache& cache = *model.expert_cache();
  ASSERT_LT(cache.slots(), 16) << "else a block fits";
  std::vector<std::int32_t> all(16);
  std::iota(all.rbegin(), all.rend(), 0);
  for (int round = 0; round < 20; ++round) {
    for (std::int64_t block = 0; block < 5; ++block) {
      take(cache, block, all);
      take(cache, block, {15, 3, 3, 8, 0});
      cache.prefetch((block + 1) % 5, std::vector<std::int32_t>{2, 9, 15}, round % 2 == 0);
    }
  }
}

TEST_F(ExpertCacheTest, LargeExpertsComeInPieces) {
  mapped_.reset();
  make(1024, 2048, 2);  // 3.3 MB an expert
  const Model model = streamed(0);
  ExpertCache& cache = *model.expert_cache();
  ASSERT_GT(cache.slot_bytes(), std::int64_t{2} << 20);
  std::vector<std::int32_t> all(16);
  std::iota(all.begin(), all.end(), 0);
  for (int round = 0; round < 5; ++round) {
    for (std::int64_t block = 0; block < 2; ++block) {
      take(cache, block, round % 2 == 0 ? all : std::vector<std::int32_t>{1, 4, 13});
      cache.prefetch((block + 1) % 2, std::vector<std::int32_t>{4, 7, 9, 13}, true);
    }
  }
}

TEST_F(ExpertCacheTest, KeepsWhatIsUsedMost) {
  const Model model = streamed(0);
  ExpertCache& cache = *model.expert_cache();
  for (int i = 0; i < 20; ++i) take(cache, 1, {2, 5});        // two favourites
  for (std::int32_t e = 0; e < 16; ++e) take(cache, 2, {e});  // and a scan, which must not push them out
  const auto before = cache.statistics();
  take(cache, 1, {2, 5});
  const auto now = cache.statistics().since(before);
  EXPECT_EQ(now.hits, 2);
  EXPECT_EQ(now.misses, 0);
  // Long out of use they lose against experts that are used now.
  cache.begin_forward(128 * 12, {});
  for (std::int32_t e = 0; e < 16; ++e) take(cache, 3, {e});
  const auto later = cache.statistics();
  take(cache, 1, {2, 5});
  EXPECT_EQ(cache.statistics().since(later).misses, 2);
}

TEST_F(ExpertCacheTest, PredictionsAreCountedAndLateOnesDropped) {
  const Model model = streamed(4);
  ExpertCache& cache = *model.expert_cache();
  cache.prefetch(3, std::vector<std::int32_t>{1, 2, 3, 4}, false);
  take(cache, 3, {3, 4, 5, 6});
  const auto seen = cache.statistics();
  EXPECT_EQ(seen.predicted, 4);
  EXPECT_EQ(seen.predicted_right, 2);
  EXPECT_EQ(seen.hits + seen.prefetch_hits + seen.misses, 4);
  // Predictions that turn out wrong are no longer followed.
  for (int i = 0; i < 60; ++i) {
    cache.prefetch(4, std::vector<std::int32_t>{12, 13, 14, 15}, false);
    take(cache, 4, {0, 1, 2, 3});
  }
  const auto before = cache.statistics();
  cache.prefetch(4, std::vector<std::int32_t>{8, 9, 10, 11}, false);
  take(cache, 4, {0, 1, 2, 3});
  EXPECT_EQ(cache.statistics().since(before).bytes_read, 0);
}

TEST_F(ExpertCacheTest, DiskFailureEndsTheForwardAndLeavesTheSequence) {
  ThreadPool pool(2);
  const auto backend = make_backend("cpu", "", pool);
  const auto tokens = random_tokens(60, 512);
  Transformer expected(*mapped_, **backend, Numerics::official);
  const std::vector<float> whole = read_in_chunks(expected, tokens, {60});

  const Model model = streamed(0);
  Transformer transformer(model, **backend, Numerics::official);
  SequenceState state(model.state_layout());
  const auto append = [&](std::size_t begin, std::size_t count) {
    const BatchItem item{&state, std::span(tokens).subspan(begin, count), BatchItem::Logits::all};
    return transformer.forward({&item, 1});
  };
  ASSERT_TRUE(append(0, 20).has_value());
  // The end of every file with experts of a late layer goes missing while the model runs.
  const fs::path victim = [&] {
    const std::byte* data = mapped_->weights().layers[4].ffn.experts[15].w2.weight;
    return mapped_->checkpoint().files()[mapped_->checkpoint().place(data)->file];
  }();
  const fs::path kept = victim.string() + ".kept";
  fs::copy_file(victim, kept);
  mapped_.reset();  // a mapped file must not shrink
  fs::resize_file(victim, 4096);
  const auto failed = append(20, 40);
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), ErrorCode::io);
  EXPECT_THAT(failed.error().message(), HasSubstr("tensor 'layers.4.ffn.experts."));
  EXPECT_THAT(failed.error().message(), HasSubstr(victim.string()));
  EXPECT_THAT(failed.error().message(), HasSubstr("truncated"));
  EXPECT_EQ(state.length(), 20);

  // When the file is whole again the sequence goes on as if nothing had happened.
  fs::copy_file(kept, victim, fs::copy_options::overwrite_existing);
  const auto rest = append(20, 40);
  ASSERT_TRUE(rest.has_value()) << rest.error().message();
  const auto row = static_cast<std::ptrdiff_t>(model.config().vocab_size);
  EXPECT_TRUE(same({rest->begin(), rest->end()}, {whole.begin() + 20 * row, whole.end()}));
}

TEST_F(ExpertCacheTest, CancelledWhileItWaits) {
  ThreadPool pool(2);
  const auto backend = make_backend("cpu", "", pool);
  const Model model = streamed(0);
  Transformer transformer(model, **backend, Numerics::official);
  SequenceState state(model.state_layout());
  const auto tokens = random_tokens(40, 512);
  const BatchItem item{&state, tokens, BatchItem::Logits::last};
  int asked = 0;
  transformer.set_cancelled([&] { return ++asked > 3; });
  const auto ended = transformer.forward({&item, 1});
  ASSERT_FALSE(ended.has_value());
  EXPECT_EQ(ended.error().code(), ErrorCode::cancelled);
  EXPECT_EQ(state.length(), 0);
  transformer.set_cancelled({});
  EXPECT_TRUE(transformer.forward({&item, 1}).has_value());
}

// The cache's readers look at what they read; the rest is looked at when it is loaded.
TEST_F(ExpertCacheTest, NamesAScaleThatIsNotFinite) {
  const Linear& w = mapped_->weights().layers[2].ffn.experts[7].w2;
  const auto place = mapped_->checkpoint().place(reinterpret_cast<const std::byte*>(w.scale));
  const fs::path file = mapped_->checkpoint().files()[place->file];
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(place->offset) + 4 * 9 + 2)
      .put('\xff');
  const Model model = streamed(0);
  ExpertCache& cache = *model.expert_cache();
  take(cache, 2, {0, 6, 8});
  cache.begin_forward(1, {});
  cache.want(2, std::vector<std::int32_t>{7});
  const auto wave = cache.next();
  ASSERT_FALSE(wave.has_value());
  EXPECT_EQ(wave.error().code(), ErrorCode::corrupt);
  EXPECT_THAT(
      wave.error().message(),
      testing::StartsWith(file.filename().string() +
                          ": 'layers.2.ffn.experts.7.w2.scale' is not finite at [9, 2] (F8_E8M0 0xff); "));
  take(cache, 2, {0, 6, 8});  // and goes on
}

TEST_F(ExpertCacheTest, DenseWeightsOfAStreamedModelAreLookedAt) {
  const Linear& w = mapped_->weights().layers[1].attn.wq_b;
  const auto place = mapped_->checkpoint().place(w.weight);
  std::fstream(mapped_->checkpoint().files()[place->file], std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(place->offset) + 128 * 2 + 1)
      .put('\x7f');
  const auto refused = Model::load(directory_ / "m", {}, {.bytes = 1 << 30});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::corrupt);
  EXPECT_THAT(refused.error().message(),
              HasSubstr("'layers.1.attn.wq_b.weight' is not finite at [2, 1] (F8_E4M3 0x7f)"));
}

TEST_F(ExpertCacheTest, Int8UnderABudgetIsPlannedAndTheSameBits) {
  ThreadPool pool(2);
  const auto backend = std::move(*make_backend("cpu", "", pool));
  const auto tokens = random_tokens(40, mapped_->config().vocab_size);
  Transformer mapped(*mapped_, *backend, Numerics::int8);
  const std::vector<float> whole = read_in_chunks(mapped, tokens, {40});
  std::vector<std::string> said;
  const auto model = Model::load(directory_ / "m", [&](std::string_view text) { said.emplace_back(text); },
                                 {.bytes = std::int64_t{1} << 30,
                                  .chunk_tokens = 64,
                                  .most_slots = ExpertCache::least_slots(4),
                                  .beside_weight = beside_weights("int8", *backend)});
  ASSERT_TRUE(model.has_value()) << model.error().message();
  ASSERT_TRUE(check_numerics(*model, Numerics::int8, *backend).has_value());
  ASSERT_EQ(said.size(), 1U);
  EXPECT_THAT(said[0], HasSubstr(" of it again as int8 + "));
  Transformer transformer(*model, *backend, Numerics::int8);
  EXPECT_GT(transformer.prepared().bytes, transformer.prepared().weight_bytes);
  EXPECT_EQ(transformer.prepared().bytes, model->memory_plan()->prepared);
  EXPECT_TRUE(same(read_in_chunks(transformer, tokens, {17, 1, 1, 5}), whole));
  // Other numerics keep nothing beside.
  EXPECT_EQ(streamed(0).memory_plan()->prepared, 0);
}

TEST_F(ExpertCacheTest, Int8PacksNoExpertsThatComeAndGo) {
  Config base = mapped_->config();
  mapped_.reset();
  base.expert_format = Linear::Format::fp8;
  ThreadPool pool(2);
  InitOptions options;
  options.force = true;
  ASSERT_TRUE(init_checkpoint(base, directory_ / "m", options, pool).has_value());
  const Model model = streamed(0);
  const auto backend = std::move(*make_backend("cpu", "", pool));
  const Status refused = check_numerics(model, Numerics::int8, *backend);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::unsupported);
  EXPECT_TRUE(check_numerics(model, Numerics::official, *backend).has_value());
}

TEST_F(ExpertCacheTest, BudgetTooSmallSaysTheLeast) {
  std::vector<std::string> said;
  const MemoryBudget memory{.bytes = 1 << 20, .chunk_tokens = 16, .sequence_tokens = 128};
  const auto refused = Model::load(
      directory_ / "m", [&](std::string_view text) { said.emplace_back(text); }, memory);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::resource_exhausted);
  EXPECT_THAT(refused.error().message(), HasSubstr("is the least that works here"));
  EXPECT_THAT(refused.error().message(), HasSubstr("for 8 experts"));
  EXPECT_TRUE(said.empty()) << "nothing was planned";
  // And that least works.
  const std::string& text = refused.error().message();
  const std::size_t at = text.find("too small: ") + 11;
  MemoryBudget least = memory;
  least.bytes = static_cast<std::int64_t>(1e9 * std::stod(text.substr(at)));
  least.bytes += 16 << 20;  // what the first attempt has left in the allocator, a sanitizer's above all
  EXPECT_TRUE(Model::load(
                  directory_ / "m", [&](std::string_view t) { said.emplace_back(t); }, least)
                  .has_value());
  ASSERT_EQ(said.size(), 1U);
  EXPECT_THAT(said[0], HasSubstr(" of 96 experts"));
}

TEST_F(ExpertCacheTest, WeightsInMemoryCannotBeStreamed) {
  ThreadPool pool(2);
  auto image = init_checkpoint_bytes(mapped_->config(), 1, StorageFormat::published, pool);
  auto checkpoint = Checkpoint::from_bytes(std::move(*image), "memory");
  const auto refused = Model::bind(mapped_->config(), std::move(*checkpoint), {}, {.bytes = 1 << 30});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::invalid_argument);
}

TEST_F(ExpertCacheTest, MeasuresTheDiskAndStaysUsable) {
  const Model model = streamed(0);
  take(*model.expert_cache(), 0, {0, 1, 2, 3});
  const auto rate = model.expert_cache()->measure_disk(50, 1);
  ASSERT_TRUE(rate.has_value());
  EXPECT_GT(*rate, 0);
  take(*model.expert_cache(), 0, {0, 1, 2, 3});
}

TEST(FileRanges, NeighboursComeInOneRead) {
  const std::vector<FilePiece> pieces = {{1, 5000, 100, "b"},
                                         {0, 10, 4096, "a"},
                                         {1, 4950, 50, "before b"},
                                         {1, 5000 + 100 + 65535, 7, "near"},
                                         {1, 200'000, 10, "far"}};
  const FileLayout layout = lay_out(pieces, 1 << 20);
  ASSERT_EQ(layout.ranges.size(), 3U);
  EXPECT_EQ(layout.ranges[0].bytes, 4096U);
  EXPECT_EQ(layout.ranges[1].offset, 4950U);
  EXPECT_EQ(layout.ranges[1].end(), 5000U + 100 + 65535 + 7);
  EXPECT_EQ(layout.at[1], 10U);
  EXPECT_EQ(layout.ranges[1].memory, 8192U) << "two blocks for what lies across a boundary";
  EXPECT_EQ(layout.at[2], 8192U + 4950 - 4096);
  EXPECT_EQ(layout.at[0], 8192U + 5000 - 4096);
  EXPECT_EQ(layout.bytes % 4096, 0U);
  EXPECT_EQ(lay_out(pieces, 100).ranges.size(), 5U) << "merges that would be too long";
}

}  // namespace
}  // namespace hadal
