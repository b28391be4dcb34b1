// Where the time of forwards goes: by op and, for linears, by parameter. A Backend that was given a Profile
// times each op that it runs; without one an op costs a branch more.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ops/ops.h"

namespace hadal {

// What one call of an op has to do, whoever runs it.
struct OpWork {
  std::string_view op;
  std::string_view parameter;  // its name without the layer, "attn.wq_a"; empty where an op has no single one
  double weight_bytes = 0;     // weights that must be read, as stored; each once
  double flops = 0;            // of products with weights or rows, 2 per multiply-add
};
OpWork work_of(const EmbedParams& p);
OpWork work_of(const RmsNormParams& p);
OpWork work_of(const LayerNormParams& p);
OpWork work_of(const LinearParams& p);
OpWork work_of(const AnglesParams& p);
OpWork work_of(const RopeParams& p);
OpWork work_of(const QuantiseParams& p);
OpWork work_of(const RoundBf16Params& p);
OpWork work_of(const ScaleParams& p);
OpWork work_of(const AddRowsParams& p);
OpWork work_of(const GatherRowsParams& p);
OpWork work_of(const HadamardParams& p);
OpWork work_of(const CompressParams& p);
OpWork work_of(const CompressTokensParams& p);
OpWork work_of(const StoreRowsParams& p);
OpWork work_of(const IndexScoresParams& p);
OpWork work_of(const IndexSelectParams& p);
OpWork work_of(const SparseAttentionParams& p);
OpWork work_of(const HcPreParams& p);
OpWork work_of(const HcPostParams& p);
OpWork work_of(const HcHeadParams& p);
OpWork work_of(const GateParams& p);
OpWork work_of(const ExpertsParams& p);

class Profile {
 public:
  struct Entry {
    OpWork work;  // summed over the calls
    std::int64_t calls = 0;
    double seconds = 0;
  };

  void add(const OpWork& work, double seconds);
  std::span<const Entry> entries() const { return entries_; }  // in the order of their first calls
  void clear() { entries_.clear(); }

  // Adds the time of its life to a profile, if there is one.
  class Timer {
   public:
    template <class Params>
    Timer(Profile* profile, const Params& p) : profile_(profile) {
      if (profile_ == nullptr) return;
      work_ = work_of(p);
      start_ = std::chrono::steady_clock::now();
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    ~Timer() {
      if (profile_ == nullptr) return;
      profile_->add(work_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
    }

   private:
    Profile* profile_;
    OpWork work_;
    std::chrono::steady_clock::time_point start_;
  };

 private:
  std::vector<Entry> entries_;
};

}  // namespace hadal
