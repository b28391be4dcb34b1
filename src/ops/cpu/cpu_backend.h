// The fast backend for CPUs: ops on the kernel table where their shapes allow, else as the reference.
#pragma once

#include <string>
#include <vector>

#include "base/buffer.h"
#include "ops/cpu/kernels.h"
#include "ops/ref/reference_backend.h"

namespace hadal {

class CpuBackend final : public ReferenceBackend {
 public:
  CpuBackend(const cpu::Kernels& kernels, ThreadPool& pool)
      : ReferenceBackend(pool), kernels_(kernels), name_("cpu-" + std::string(kernels.isa)) {}
  std::string_view name() const override { return name_; }

 private:
  void linear(const LinearParams& p) override;
  void index_scores(const IndexScoresParams& p) override;
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

  // What gemm reads of an activation: floats, or the packed form of the instruction sets that have one.
  struct Input {
    const float* x = nullptr;
    std::int64_t stride = 0;
    const std::uint16_t* packed = nullptr;
    std::int64_t rows = 0;
  };
  struct InputStorage {
    Buffer<float> floats;
    Buffer<std::uint16_t> packed;
  };
  // x [rows, dim] as it is or, if `quantised`, rounded to E4M3 per 1x128 in `storage`.
  Input input(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t dim, bool quantised,
              InputStorage& storage);

  // At least n elements of a buffer whose contents nobody needs any more.
  template <class T>
  static T* grow(Buffer<T>& buffer, std::int64_t n) {
    if (static_cast<std::int64_t>(buffer.size()) < n)
      buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
    return buffer.data();
  }
  void assign_slots(const ExpertsParams& p);

  const cpu::Kernels& kernels_;
  std::string name_;
  // Scratch that grows to the largest batch seen and is then reused.
  InputStorage input_, shared_input_, hidden_input_, shared_hidden_input_;
  Buffer<float> gate_, up_, hidden_;
  std::vector<float> weight_of_;
  std::vector<std::int32_t> token_of_, slot_of_, expert_begin_, next_slot_, active_;
};

}  // namespace hadal
