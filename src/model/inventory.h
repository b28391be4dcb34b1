// What a model consists of, counted from its config: tensors and bytes, parameters, and what a sequence costs
// (docs/inspect.md). The counting rules are those under which the published totals come out to the digit.
#pragma once

#include <cstdint>
#include <map>

#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/parameters.h"

namespace hadal {

struct Inventory {
  struct Entry {
    std::int64_t tensors = 0;
    std::int64_t bytes = 0;
  };
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;  // of the tensors, without file headers
  std::map<DType, Entry> dtypes;

  void add(DType dtype, std::int64_t tensor_bytes);
};

// What a checkpoint of this config holds, MTP blocks included.
Inventory expected_inventory(const Config& config, StorageFormat format);
// What is there.
Inventory checkpoint_inventory(const Checkpoint& checkpoint);

struct ParameterCount {
  std::int64_t total = 0;   // without MTP blocks, hash tables and quantisation scales
  std::int64_t active = 0;  // of these, multiplied for one token: without the embedding and the idle experts
  std::int64_t mtp = 0;     // of the MTP blocks, all experts
};
ParameterCount count_parameters(const Config& config);

// The cache of a sequence in the published formats (report, section 2.3.4): FP8 rows with BF16 rotary dims,
// FP4 index rows. Of V3.2: FP8 rows with float32 scales. MTP blocks are left out.
struct CacheCost {
  std::int64_t row_bytes = 0;           // of a window or compressed row, padded to 8 bytes
  std::int64_t index_row_bytes = 0;     // of an index row
  double bytes_per_token = 0;           // of compressed and index rows, over all layers
  std::int64_t bytes_per_sequence = 0;  // of the windows, whatever the length

  double bytes_at(std::int64_t tokens) const {
    return bytes_per_token * static_cast<double>(tokens) + static_cast<double>(bytes_per_sequence);
  }
};
CacheCost cache_cost(const Config& config);

}  // namespace hadal
