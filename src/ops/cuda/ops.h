// The ops as launches: each function records what its Params ask for.
#pragma once

#include <vector>

#include "ops/cuda/recorder.h"
#include "ops/ops.h"

namespace hadal::cuda {

// Scratch of ops that need it under a name of its own (Recorder::scratch).
enum Slot : std::size_t {
  kExpertSlots,  // which expert gets which token
  kExpertHidden,
  kExpertOutput,
  kAttentionQueries,
  kAttentionScores,
  kAttentionExponentials,
  kAttentionSums,
  kAttentionPartials,
  kIndexScores,
};

// What is done to rows in place, in this order, by one kernel.
struct RowSteps {
  const float* x = nullptr;  // [rows, dim], read
  float* out = nullptr;      // [rows, dim], written
  std::int64_t rows = 0;
  std::int64_t dim = 0;

  bool norm = false;
  const float* weight = nullptr;  // null: none
  float eps = 0;

  bool rope = false;
  std::int64_t heads = 1;  // rows of a token
  std::int64_t rope_dim = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  bool inverse = false;

  bool hadamard = false;

  bool quantise = false;
  QuantiseParams::Format format = QuantiseParams::Format::e4m3_64;
  std::int64_t quantised_dim = 0;

  bool bf16 = false;
  std::int64_t bf16_begin = 0;
};
void row_steps(Recorder& r, const RowSteps& p);

void embed(Recorder& r, const EmbedParams& p);
void angles(Recorder& r, const AnglesParams& p);
void scale(Recorder& r, const ScaleParams& p);
void add_rows(Recorder& r, const AddRowsParams& p);
void gather_rows(Recorder& r, const GatherRowsParams& p);
void store_rows(Recorder& r, const StoreRowsParams& p);
void compress(Recorder& r, const CompressParams& p);
void compress_tokens(Recorder& r, const CompressTokensParams& p);
void linear(Recorder& r, const LinearParams& p);
void index_scores(Recorder& r, const IndexScoresParams& p);
// Selections of one layer, a sequence after another, that become one launch.
struct IndexSelection {
  IndexSelectParams first;
  std::vector<const std::byte* const*> pages;  // of each token's sequence, staged
  std::vector<std::int64_t> visible;           // of each token

  // False if it does not continue what is here, which must be recorded before.
  bool add(Recorder& r, const IndexSelectParams& p);
  void record(Recorder& r);
};
void sparse_attention(Recorder& r, const SparseAttentionParams& p);
// With the norm of its output behind it, in place; null: none.
void hc_pre(Recorder& r, const HcPreParams& p, const RmsNormParams* norm);
void hc_post(Recorder& r, const HcPostParams& p);
void hc_head(Recorder& r, const HcHeadParams& p);
void gate(Recorder& r, const GateParams& p);
void experts(Recorder& r, const ExpertsParams& p);

}  // namespace hadal::cuda
