#include "train/parameter_set.h"

#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

constexpr std::int64_t kAlign = 16;  // floats: a cache line
constexpr std::int64_t kValuesGrain = 1 << 14;

template <class Slot>
constexpr bool kIsTable = std::is_same_v<std::remove_cvref_t<Slot>, HashTable>;

}  // namespace

ParameterSet::ParameterSet(const Config& config, ExpertPlacement placement) : placement_(placement) {
  std::int64_t floats = 0, ids = 0;
  for_each_parameter(config, weights_, [&](auto& slot, const ParameterInfo& info) {
    std::int64_t size = 1;
    for (const std::int64_t extent : info.shape) size *= extent;
    if constexpr (kIsTable<decltype(slot)>) {
      parameters_.push_back({info, floats, 0});
      table_offsets_.push_back(ids);
      ids += size;
    } else {
      parameters_.push_back({info, floats, size});
      table_offsets_.push_back(-1);
      floats += (size + kAlign - 1) / kAlign * kAlign;
    }
  });
  values_ = UntouchedFloats(static_cast<std::size_t>(floats));
  held_ = floats;
  for (const Parameter& p : parameters_) {
    if (placement.holds(p.info)) continue;
    elsewhere_.push_back({p.offset, p.size, placement.owner(p.info.expert)});
    held_ -= p.size;
  }
  tables_ = Buffer<std::int32_t>(static_cast<std::size_t>(ids));
  std::size_t i = 0;
  for_each_parameter(config, weights_, [&](auto& slot, const ParameterInfo& info) {
    using Slot = std::remove_cvref_t<decltype(slot)>;
    const Parameter& p = parameters_[i++];
    if constexpr (std::is_same_v<Slot, HashTable>) {
      slot.values = table(p);
    } else if constexpr (std::is_same_v<Slot, Vector>) {
      slot.values = (*this)[p];
    } else {
      slot.out = info.shape[0];
      slot.in = info.shape[1];
      slot.format = Linear::Format::f32;
      slot.weight = reinterpret_cast<const std::byte*>((*this)[p].data());
    }
  });
}

ParameterSet ParameterSet::from(const Model& model, ThreadPool& pool, ExpertPlacement placement) {
  HADAL_CHECK(model.memory_plan() == nullptr);
  ParameterSet set(model.config(), placement);
  Weights stored = model.weights();
  std::size_t i = 0;
  for_each_parameter(model.config(), stored, [&](auto& slot, const ParameterInfo&) {
    using Slot = std::remove_cvref_t<decltype(slot)>;
    const Parameter& p = set.parameters_[i++];
    if (!placement.holds(p.info)) return;
    if constexpr (std::is_same_v<Slot, HashTable>) {
      std::copy(slot.values.begin(), slot.values.end(), set.table(p).begin());
    } else if constexpr (std::is_same_v<Slot, Vector>) {
      std::copy(slot.values.begin(), slot.values.end(), set[p].begin());
    } else {
      float* to = set[p].data();
      const Linear& from = slot;
      pool.parallel_for(from.out, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) ref::dequantise_row(from, row, to + row * from.in);
      });
    }
  });
  return set;
}

const Parameter* ParameterSet::find(std::string_view name) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [&](const Parameter& p) { return p.info.name == name; });
  return found == parameters_.end() ? nullptr : &*found;
}

std::span<std::int32_t> ParameterSet::table(const Parameter& p) {
  const std::int64_t offset = table_offsets_[static_cast<std::size_t>(&p - parameters_.data())];
  HADAL_CHECK(offset >= 0);
  return {tables_.data() + offset, static_cast<std::size_t>(p.info.shape[0] * p.info.shape[1])};
}

std::span<const std::int32_t> ParameterSet::table(const Parameter& p) const {
  return const_cast<ParameterSet*>(this)->table(p);
}

template <class Body>
void ParameterSet::for_each_held(ThreadPool& pool, Body&& body) const {
  std::int64_t begin = 0;
  const auto run = [&](std::int64_t end) {
    if (end > begin)
      pool.parallel_for(end - begin, kValuesGrain,
                        [&](std::int64_t first, std::int64_t last) { body(begin + first, begin + last); });
  };
  for (const Shard& s : elsewhere_) {
    run(s.offset);
    begin = s.offset + s.size;
  }
  run(static_cast<std::int64_t>(values_.size()));
}

void ParameterSet::clear(ThreadPool& pool) {
  float* const values = values_.data();
  for_each_held(pool,
                [&](std::int64_t begin, std::int64_t end) { std::fill(values + begin, values + end, 0.0F); });
}

void ParameterSet::add(const ParameterSet& other, ThreadPool& pool) {
  const float* const from = other.values_.data();
  float* const to = values_.data();
  other.for_each_held(pool, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

}  // namespace hadal
