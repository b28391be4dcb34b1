// A backend runs the ops. run(params) checks the arguments once at the door and dispatches; inside they are
// trusted. Backends differ in speed, not in meaning: ops/ref defines each op.
#pragma once

#include <memory>
#include <string_view>

#include <hadal/error.h>

#include "base/memory.h"
#include "base/thread_pool.h"
#include "ops/ops.h"
#include "ops/profile.h"

namespace hadal {

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // "ref", "cpu" with its instruction set: "cpu-avx512", or "cuda" with its device: "cuda-NVIDIA H200".
  virtual std::string_view name() const = 0;

  // Where the arrays of all Params are. Ops on a device may be done when it is next read, not when run()
  // returns.
  virtual Memory& memory() { return host_memory(); }
  // Whether linears take their inputs rounded this way.
  virtual bool supports(InputRounding /*rounding*/) const { return true; }

  // Makes what a fast path wants beside a weight, once, before its first use with this rounding; the bytes
  // taken.
  virtual std::int64_t prepare(const Linear& /*weight*/, InputRounding /*rounding*/) { return 0; }
  // What prepare() would take for a weight of this shape and format.
  virtual std::int64_t prepared_bytes(const Linear& /*weight*/, InputRounding /*rounding*/) const {
    return 0;
  }
  // Times every op from now on, or, if null, none. Must outlive its use.
  virtual void set_profile(Profile* profile) { profile_ = profile; }

  void run(const EmbedParams& p);
  void run(const RmsNormParams& p);
  void run(const LayerNormParams& p);
  void run(const LinearParams& p);
  void run(const AnglesParams& p);
  void run(const RopeParams& p);
  void run(const QuantiseParams& p);
  void run(const RoundBf16Params& p);
  void run(const ScaleParams& p);
  void run(const AddRowsParams& p);
  void run(const GatherRowsParams& p);
  void run(const HadamardParams& p);
  void run(const CompressParams& p);
  void run(const CompressTokensParams& p);
  void run(const StoreRowsParams& p);
  void run(const IndexScoresParams& p);
  void run(const IndexSelectParams& p);
  void run(const SparseAttentionParams& p);
  void run(const HcPreParams& p);
  void run(const HcPostParams& p);
  void run(const HcHeadParams& p);
  void run(const GateParams& p);
  void run(const ExpertsParams& p);

 private:
  virtual void embed(const EmbedParams& p) = 0;
  virtual void rms_norm(const RmsNormParams& p) = 0;
  virtual void layer_norm(const LayerNormParams& p) = 0;
  virtual void linear(const LinearParams& p) = 0;
  virtual void angles(const AnglesParams& p) = 0;
  virtual void rope(const RopeParams& p) = 0;
  virtual void quantise(const QuantiseParams& p) = 0;
  virtual void round_bf16(const RoundBf16Params& p) = 0;
  virtual void scale(const ScaleParams& p) = 0;
  virtual void add_rows(const AddRowsParams& p) = 0;
  virtual void gather_rows(const GatherRowsParams& p) = 0;
  virtual void hadamard(const HadamardParams& p) = 0;
  virtual void compress(const CompressParams& p) = 0;
  virtual void compress_tokens(const CompressTokensParams& p) = 0;
  virtual void store_rows(const StoreRowsParams& p) = 0;
  virtual void index_scores(const IndexScoresParams& p) = 0;
  virtual void index_select(const IndexSelectParams& p) = 0;
  virtual void sparse_attention(const SparseAttentionParams& p) = 0;
  virtual void hc_pre(const HcPreParams& p) = 0;
  virtual void hc_post(const HcPostParams& p) = 0;
  virtual void hc_head(const HcHeadParams& p) = 0;
  virtual void gate(const GateParams& p) = 0;
  virtual void experts(const ExpertsParams& p) = 0;

  template <class Params>
  void dispatch(void (Backend::*op)(const Params&), const Params& p) {
    const Profile::Timer timer(profile_, p);
    (this->*op)(p);
  }

  Profile* profile_ = nullptr;
};

// "ref": the plain reference. "cuda": the first CUDA device, in builds with HADAL_CUDA. "cpu": the kernels of
// the best instruction set that this machine has, or of `isa` ("avx512bf16", "avx512vnni", "avx512",
// "avx2vnni", "avx2", "neon_dotprod", "neon", "scalar") when it is not empty. Errors: unsupported, naming
// what there is. The pool must outlive the backend.
Result<std::unique_ptr<Backend>> make_backend(std::string_view name, std::string_view isa, ThreadPool& pool);

}  // namespace hadal
