#include "engine/runner.h"

#include <algorithm>
#include <vector>

#include <xxhash.h>

#include "engine/engine_impl.h"

namespace hadal {

class ModelRunner final : public Runner {
 public:
  explicit ModelRunner(const Engine& engine) : engine_(*engine.impl_) {
    engine_.transformer->set_cancelled({});
  }

  const StateLayout& layout() const override { return engine_.state_layout(); }
  std::int64_t vocab_size() const override { return engine_.info.vocab_size; }

  std::int64_t context() const override {
    const MemoryPlan* plan = engine_.model->memory_plan();
    return plan == nullptr ? engine_.info.context : std::min(engine_.info.context, plan->sequence_tokens);
  }

  // The config, the numerics, and a sample of every weight but the routed experts' own bytes: those of a
  // large model are thousands of tensors on disk, and no checkpoint changes in them alone.
  std::uint64_t fingerprint() const override {
    std::uint64_t hash = XXH64(engine_.info.config_json.data(), engine_.info.config_json.size(),
                               engine_.state_layout().fingerprint);
    hash = XXH64(engine_.info.numerics.data(), engine_.info.numerics.size(), hash);
    engine_.model->for_each_linear([&hash](const Linear& w) {
      const auto format = static_cast<std::uint8_t>(w.format);
      hash = XXH64(&format, sizeof(format), hash);
      if (w.weight == nullptr || w.name.find("experts") != std::string_view::npos) return;
      constexpr std::int64_t kSample = 256;
      const std::int64_t bytes = w.out * w.row_bytes();
      const auto sample = static_cast<std::size_t>(std::min(kSample, bytes));
      hash = XXH64(w.weight, sample, hash);
      hash = XXH64(w.weight + (bytes - static_cast<std::int64_t>(sample)) / 2, sample, hash);
    });
    return hash;
  }

  Result<std::span<const float>> forward(std::span<const RunItem> items) override {
    batch_.clear();
    for (const RunItem& item : items) {
      batch_.push_back({item.state, item.history.last(static_cast<std::size_t>(item.count)),
                        item.wants_logits ? BatchItem::Logits::last : BatchItem::Logits::none});
    }
    return engine_.transformer->forward(batch_);
  }

 private:
  Engine::Impl& engine_;
  std::vector<BatchItem> batch_;
};

std::unique_ptr<Runner> make_model_runner(const Engine& engine) {
  return std::make_unique<ModelRunner>(engine);
}

}  // namespace hadal
