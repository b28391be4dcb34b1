// The weights of a model where a backend's ops can read them: the model's own on the host, or a copy of them
// on a device.
#pragma once

#include <vector>

#include "base/memory.h"
#include "model/model.h"

namespace hadal {

class PlacedWeights {
 public:
  // What a copy of the model's weights takes.
  static std::size_t bytes(const Model& model);
  // `model` and `memory` must outlive it. Throws std::bad_alloc where they do not fit.
  PlacedWeights(const Model& model, Memory& memory);

  // Their Linear::weight, Vector::values and the like point into the memory.
  const Weights& get() const { return memory_.on_host() ? model_.weights() : copy_; }

 private:
  const Model& model_;
  Memory& memory_;
  Weights copy_;
  std::vector<MemoryBlock> blocks_;  // of each layer and of the top level
};

}  // namespace hadal
