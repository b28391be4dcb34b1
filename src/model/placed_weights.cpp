#include "model/placed_weights.h"

#include <type_traits>

namespace hadal {
namespace {

std::size_t scale_bytes(const Linear& w) {
  const Shape shape = scale_shape(w.format, w.out, w.in);
  return static_cast<std::size_t>(shape[0] * shape[1]);
}

// Visits every array of a slot as (pointer to its place, bytes).
template <class Slot, class Visit>
void for_each_array(Slot& slot, Visit&& visit) {
  if constexpr (std::is_same_v<Slot, Linear>) {
    visit(slot.weight, static_cast<std::size_t>(slot.out * slot.row_bytes()));
    if (slot.quantised()) visit(slot.scale, scale_bytes(slot));
  } else {
    using Value = typename decltype(slot.values)::element_type;
    const Value* data = slot.values.data();
    visit(data, slot.values.size_bytes());
    slot.values = {data, slot.values.size()};
  }
}

// Arrays begin where a row of a device's memory does; the experts of a layer then lie at equal distances.
constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::size_t PlacedWeights::bytes(const Model& model) {
  Weights weights = model.weights();
  std::size_t total = 0;
  for_each_parameter(model.config(), weights, [&](auto& slot, const ParameterInfo&) {
    for_each_array(slot, [&](auto*&, std::size_t bytes) { total += aligned(bytes); });
  });
  return total;
}

PlacedWeights::PlacedWeights(const Model& model, Memory& memory) : model_(model), memory_(memory) {
  if (memory.on_host()) return;
  copy_ = model.weights();
  // One block of memory per layer (and for what is outside of them), which the walk names by its number.
  const auto part = [](const ParameterInfo& info) { return static_cast<std::size_t>(info.block + 1); };
  std::vector<std::size_t> sizes;
  for_each_parameter(model.config(), copy_, [&](auto& slot, const ParameterInfo& info) {
    if (sizes.size() <= part(info)) sizes.resize(part(info) + 1);
    for_each_array(slot, [&](auto*&, std::size_t bytes) { sizes[part(info)] += aligned(bytes); });
  });
  std::vector<std::byte*> at;
  for (const std::size_t bytes : sizes) {
    blocks_.push_back(MemoryBlock::uninitialised(bytes, memory));
    at.push_back(blocks_.back().data());
  }
  for_each_parameter(model.config(), copy_, [&](auto& slot, const ParameterInfo& info) {
    for_each_array(slot, [&](auto*& data, std::size_t bytes) {
      std::byte*& to = at[part(info)];
      memory.write(to, data, bytes);
      data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(to);
      to += aligned(bytes);
    });
  });
}

}  // namespace hadal
