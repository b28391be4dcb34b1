#include "model/streamed_weights.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/memory_policy.h"

namespace hadal {
namespace {

constexpr std::uint64_t kLongestRange = std::uint64_t{64}
                                        << 20;  // of a merge; keeps all readers busy at load

// Every tensor of linears, by where it goes; the walk over the parameters visits it.
class StreamedTensors {
 public:
  StreamedTensors(const Config& config, const Checkpoint& checkpoint)
      : experts(static_cast<std::size_t>(config.num_blocks() * config.n_routed_experts)),
        checkpoint_(checkpoint),
        per_block_(config.n_routed_experts) {}

  void operator()(Linear& slot, const ParameterInfo& info) {
    if (info.expert < 0) {
      dense_slots.push_back(&slot);
      add(dense, slot, info.name);
      return;
    }
    // The walk gives w1, w2, w3 in this order.
    StoredExpert& expert = experts[static_cast<std::size_t>(info.block * per_block_ + info.expert)];
    Linear* const shapes[] = {&expert.shape.w1, &expert.shape.w2, &expert.shape.w3};
    Linear& shape = *shapes[expert.pieces.size() / 2];
    add(expert.pieces, slot, info.name);
    slot.weight = nullptr;
    slot.scale = nullptr;
    shape = slot;
  }
  void operator()(Vector& /*slot*/, const ParameterInfo& /*info*/) {}
  void operator()(HashTable& /*slot*/, const ParameterInfo& /*info*/) {}

  std::vector<FilePiece> dense;  // weights, scales of each of
  std::vector<Linear*> dense_slots;
  std::vector<StoredExpert> experts;  // [blocks * experts]
  bool in_files = true;

 private:
  // Weights, then scales; a format without scales has an empty piece behind its weights.
  void add(std::vector<FilePiece>& pieces, const Linear& w, const std::string& name) {
    const auto piece = [&](const std::byte* data, std::int64_t bytes, std::string of) {
      const auto place = checkpoint_.place(data);
      in_files = in_files && place.has_value();
      if (place)
        pieces.push_back({place->file, place->offset, static_cast<std::uint64_t>(bytes), std::move(of)});
    };
    piece(w.weight, w.out * w.row_bytes(), name);
    if (w.quantised()) {
      const Shape shape = scale_shape(w.format, w.out, w.in);
      piece(reinterpret_cast<const std::byte*>(w.scale), shape[0] * shape[1], scale_name(name));
    } else {
      piece(w.weight, 0, name);
    }
  }

  const Checkpoint& checkpoint_;
  std::int64_t per_block_;
};

// Reads all ranges to `memory`, several at a time.
Status read_all(std::span<const std::filesystem::path> paths, const FileLayout& layout, std::byte* memory) {
  std::vector<DirectFile> files;
  for (const auto& path : paths) {
    HADAL_ASSIGN_OR_RETURN(DirectFile file, DirectFile::open(path));
    files.push_back(std::move(file));
  }
  std::vector<Status> results(ExpertCache::kReaders);
  std::vector<std::thread> readers;
  readers.reserve(results.size());
  std::atomic<std::size_t> next{0};
  for (Status& result : results) {
    readers.emplace_back([&] {
      for (std::size_t i = 0; result && (i = next.fetch_add(1)) < layout.ranges.size();) {
        const FileRange& range = layout.ranges[i];
        result = files[range.file].read(range.offset, range.bytes, memory + range.memory);
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  for (Status& result : results) HADAL_RETURN_IF_ERROR(std::move(result));
  return {};
}

}  // namespace

Result<StreamedWeights> StreamedWeights::take(const Config& config, const StateLayout& layout,
                                              const Checkpoint& checkpoint, const MemoryBudget& budget,
                                              const Notice& notice, Weights& weights) {
  StreamedTensors found(config, checkpoint);
  for_each_parameter(config, weights, found);
  if (!found.in_files) {
    return fail(
        ErrorCode::invalid_argument,
        "a memory budget needs a model in files, to read experts from; these weights are in memory already");
  }
  std::uint64_t slot_bytes = 0;
  for (StoredExpert& expert : found.experts) {
    FileLayout slot = lay_out(expert.pieces, kLongestRange);
    std::copy(slot.at.begin(), slot.at.end(), expert.at.begin());
    expert.ranges = std::move(slot.ranges);
    expert.bytes = slot.bytes;
    slot_bytes = std::max(slot_bytes, slot.bytes);
  }
  const FileLayout dense = lay_out(found.dense, kLongestRange);

  std::int64_t prepared = 0;
  if (budget.beside_weight) {
    for (const Linear* w : found.dense_slots) prepared += budget.beside_weight(*w);
  }

  StreamedWeights streamed;
  checkpoint.release_pages();
  HADAL_ASSIGN_OR_RETURN(streamed.plan, plan_memory(config, layout, budget, resident_memory_bytes(),
                                                    static_cast<std::int64_t>(dense.bytes), prepared,
                                                    static_cast<std::int64_t>(found.experts.size()),
                                                    static_cast<std::int64_t>(slot_bytes)));
  if (notice) notice("memory: " + streamed.plan.to_string());
  HADAL_ASSIGN_OR_RETURN(streamed.dense, AnonymousMemory::map(dense.bytes));
  HADAL_RETURN_IF_ERROR(read_all(checkpoint.files(), dense, streamed.dense.data()));
  for (std::size_t i = 0; i < found.dense_slots.size(); ++i) {
    Linear& w = *found.dense_slots[i];
    w.weight = streamed.dense.data() + dense.at[2 * i];
    if (w.quantised())
      w.scale = reinterpret_cast<const std::uint8_t*>(streamed.dense.data() + dense.at[2 * i + 1]);
  }
  HADAL_ASSIGN_OR_RETURN(
      streamed.experts,
      ExpertCache::open(checkpoint.files(), std::move(found.experts), config.n_routed_experts,
                        config.num_experts_per_tok, streamed.plan.slots));
  return streamed;
}

}  // namespace hadal
