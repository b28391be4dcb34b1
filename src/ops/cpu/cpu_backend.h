// The fast backend for CPUs: ops on the kernel table where their shapes allow, else as the reference.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "base/buffer.h"
#include "ops/cpu/index_query.h"
#include "ops/cpu/kernels.h"
#include "ops/ref/reference_backend.h"

namespace hadal {

class CpuBackend final : public ReferenceBackend {
 public:
  CpuBackend(const cpu::Kernels& kernels, ThreadPool& pool)
      : ReferenceBackend(pool), kernels_(kernels), name_("cpu-" + std::string(kernels.isa)) {}
  std::string_view name() const override { return name_; }
  std::int64_t prepared_bytes(const Linear& w, InputRounding rounding) const override;

 private:
  std::int64_t prepare(const Linear& w, InputRounding rounding) override;
  void linear(const LinearParams& p) override;
  void index_select(const IndexSelectParams& p) override;
  void sparse_attention(const SparseAttentionParams& p) override;
  void experts(const ExpertsParams& p) override;
  void rms_norm(const RmsNormParams& p) override;
  void rope(const RopeParams& p) override;
  void quantise(const QuantiseParams& p) override;
  void hadamard(const HadamardParams& p) override;
  void compress(const CompressParams& p) override;
  void hc_pre(const HcPreParams& p) override;
  void hc_post(const HcPostParams& p) override;
  void hc_head(const HcHeadParams& p) override;
  void gate(const GateParams& p) override;

  // What gemm reads of an activation, in the form that suits the weights: plain floats, or packed.
  struct Input {
    const float* x = nullptr;
    std::int64_t stride = 0;
    const std::uint16_t* rounded = nullptr;
    const float* split = nullptr;
    cpu::E4m3Input e4m3;
    cpu::Int8Input int8;
    std::int64_t rows = 0;
  };
  struct InputStorage {
    Buffer<float> floats;
    Buffer<std::uint16_t> rounded;
    Buffer<std::byte> int8;
    Buffer<std::int8_t> codes;
    Buffer<std::int32_t> offsets;
  };
  // x [rows, dim] for weights of this format; rounded if they are quantised.
  Input input(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t dim, Linear::Format format,
              InputRounding rounding, InputStorage& storage);

  // Rows that one call of a multiplication should cover.
  std::int64_t panel_rows(Linear::Format format, InputRounding rounding) const {
    return rounding == InputRounding::int8 && is_quantised(format) ? kernels_.int8_panel_rows
                                                                   : kernels_.panel_rows;
  }
  // At least n elements of a buffer whose contents nobody needs any more.
  template <class T>
  static T* grow(Buffer<T>& buffer, std::int64_t n) {
    if (static_cast<std::int64_t>(buffer.size()) < n)
      buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
    return buffer.data();
  }
  void assign_slots(const ExpertsParams& p);
  // Which rows of the input a multiplication takes, and where in the output theirs go: `first` and those
  // after it, or by index.
  struct Tokens {
    std::int64_t count = 0;
    std::int64_t first = 0;
    const std::int32_t* x_index = nullptr;
    const std::int32_t* y_index = nullptr;
  };
  // Rows [begin, end) of W.
  void multiply(const Linear& w, std::int64_t begin, std::int64_t end, const Tokens& tokens, const Input& in,
                float* y, bool accumulate) const;
  void index_select_slice(const IndexSelectParams& p);
  // Of token t for the first n_rows rows of a block: as `block` unpacked (FP4), as columns (float32) or where
  // the tiles are.
  void block_scores(const IndexSelectParams& p, std::int64_t t, const std::byte* const* tiles,
                    const cpu::IndexRowBlock& block, const float* columns, std::int64_t n_rows,
                    float* scores) const;
  // Leaves for each token t of [token_begin, token_end) the candidates among rows [row_begin, row_end) at
  // keys + t * keys_stride, and their number.
  void index_candidates(const IndexSelectParams& p, std::int64_t token_begin, std::int64_t token_end,
                        std::int64_t row_begin, std::int64_t row_end, std::uint64_t* keys,
                        std::int64_t keys_stride, std::int64_t* counts, std::int64_t counts_stride);

  const cpu::Kernels& kernels_;
  std::unordered_map<const std::byte*, Buffer<std::byte>> int8_tiles_;  // by Linear::weight
  std::string name_;
  // Scratch that grows to the largest batch seen and is then reused.
  InputStorage input_, shared_input_, hidden_input_, shared_hidden_input_;
  Buffer<float> gate_, up_, hidden_;
  struct {
    cpu::IndexQueries queries;
    Buffer<std::uint32_t> pairs;  // of FP8 rows
    Buffer<std::uint64_t> keys;
    Buffer<std::int64_t> counts;
  } index_;
  std::vector<float> weight_of_;
  std::vector<std::int32_t> token_of_, slot_of_, expert_begin_, next_slot_, active_;
};

}  // namespace hadal
