// One float32 number for every element of every parameter of a model, in the order of the one walk
// (model/parameters.h). Master weights, gradients and the optimizer's moments are all sets of the same
// layout, so that what belongs together lies at the same offset: in one set as in the other, and on every
// rank of a run. What other ranks hold (expert_placement.h) reads as zeros here and takes no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "dist/communicator.h"
#include "model/config.h"
#include "model/model.h"
#include "model/parameters.h"
#include "train/expert_placement.h"
#include "train/untouched_floats.h"

namespace hadal {

struct Parameter {
  ParameterInfo info;
  std::int64_t offset = 0;  // of its first element in ParameterSet::values; a multiple of 16
  std::int64_t size = 0;    // elements; 0 for a hash table, whose ids are in ParameterSet::table
  // Whether the loss has a gradient with respect to it: not the router's bias, which only chooses, and not
  // the hash table.
  bool differentiable() const { return info.role != Role::router_bias && info.role != Role::hash_table; }
};

class ParameterSet {
 public:
  explicit ParameterSet(const Config& config, ExpertPlacement placement = {});  // all zero
  // The weights of a loaded model, dequantised exactly. The model must not be under a memory budget.
  static ParameterSet from(const Model& model, ThreadPool& pool, ExpertPlacement placement = {});

  ParameterSet(ParameterSet&&) noexcept = default;
  ParameterSet& operator=(ParameterSet&&) noexcept = default;

  std::span<const Parameter> parameters() const { return parameters_; }
  const Parameter* find(std::string_view name) const;  // null: no such parameter

  // Of one parameter, row-major.
  std::span<float> operator[](const Parameter& p) {
    return {values_.data() + p.offset, static_cast<std::size_t>(p.size)};
  }
  std::span<const float> operator[](const Parameter& p) const {
    return {values_.data() + p.offset, static_cast<std::size_t>(p.size)};
  }
  // Of a hash table, [vocab, k].
  std::span<std::int32_t> table(const Parameter& p);
  std::span<const std::int32_t> table(const Parameter& p) const;

  // All of them, with zeros between the parameters.
  std::span<float> values() { return values_.span(); }
  std::span<const float> values() const { return values_.span(); }
  const ExpertPlacement& placement() const { return placement_; }
  std::int64_t held() const { return held_; }  // values that are here
  // All values 0; tables stay.
  void clear(ThreadPool& pool);
  // This += other, of the same layout, where the other one has values.
  void add(const ParameterSet& other, ThreadPool& pool);

  // The same numbers as the model's parts see them; valid for the life of this set.
  const Weights& weights() const { return weights_; }
  // Where this set has what `other`, of the same config, has at `p`: the gradient of a weight.
  float* twin(const ParameterSet& other, const float* p) {
    return values_.data() + (p - other.values_.data());
  }

 private:
  // Calls body(begin, end) for ranges of the values that are here, shared out over the pool.
  template <class Body>
  void for_each_held(ThreadPool& pool, Body&& body) const;

  std::vector<Parameter> parameters_;
  UntouchedFloats values_;
  ExpertPlacement placement_;
  std::vector<Shard> elsewhere_;  // what other ranks hold, as ranges of values()
  std::int64_t held_ = 0;
  Buffer<std::int32_t> tables_;
  std::vector<std::int64_t> table_offsets_;  // by parameter; -1: no table
  Weights weights_;
};

}  // namespace hadal
