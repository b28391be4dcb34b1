#include "train/parameter_set.h"

#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "ops/ref/ref.h"

namespace hadal {
namespace {

constexpr std::int64_t kAlign = 16;  // floats: a cache line

template <class Slot>
constexpr bool kIsTable = std::is_same_v<std::remove_cvref_t<Slot>, HashTable>;

}  // namespace

ParameterSet::ParameterSet(const Config& config) {
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
  values_ = Buffer<float>(static_cast<std::size_t>(floats));
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

ParameterSet ParameterSet::from(const Model& model, ThreadPool& pool) {
  HADAL_CHECK(model.memory_plan() == nullptr);
  ParameterSet set(model.config());
  Weights stored = model.weights();
  std::size_t i = 0;
  for_each_parameter(model.config(), stored, [&](auto& slot, const ParameterInfo&) {
    using Slot = std::remove_cvref_t<decltype(slot)>;
    const Parameter& p = set.parameters_[i++];
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

void ParameterSet::clear() {
  std::fill_n(values_.data(), values_.size(), 0.0F);
}

}  // namespace hadal
