#include "ops/profile.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

double stored_bytes(const Linear& w) {
  const std::int64_t scales = w.format == Linear::Format::fp4   ? w.out * (w.in / 32)
                              : w.format == Linear::Format::fp8 ? (w.out + 127) / 128 * ((w.in + 127) / 128)
                                                                : 0;
  return static_cast<double>(w.out * w.row_bytes() + scales);
}
double stored_bytes(const Expert& e) {
  return stored_bytes(e.w1) + stored_bytes(e.w2) + stored_bytes(e.w3);
}
double product(std::int64_t a, std::int64_t b, std::int64_t c) {
  return static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c);
}

}  // namespace

OpWork work_of(const EmbedParams& p) {
  return {"embed", p.embed->name,
          static_cast<double>(p.tokens.size()) * static_cast<double>(p.embed->row_bytes())};
}
OpWork work_of(const RmsNormParams&) {
  return {"rms_norm", ""};
}
OpWork work_of(const LayerNormParams&) {
  return {"layer_norm", ""};
}
OpWork work_of(const LinearParams& p) {
  return {"linear", p.weight->name, stored_bytes(*p.weight),
          2 * product(p.n_tokens, p.weight->out, p.weight->in)};
}
OpWork work_of(const AnglesParams&) {
  return {"angles", ""};
}
OpWork work_of(const RopeParams&) {
  return {"rope", ""};
}
OpWork work_of(const QuantiseParams&) {
  return {"quantise", ""};
}
OpWork work_of(const RoundBf16Params&) {
  return {"round_bf16", ""};
}
OpWork work_of(const ScaleParams&) {
  return {"scale", ""};
}
OpWork work_of(const AddRowsParams&) {
  return {"add_rows", ""};
}
OpWork work_of(const GatherRowsParams&) {
  return {"gather_rows", ""};
}
OpWork work_of(const HadamardParams&) {
  return {"hadamard", ""};
}
OpWork work_of(const CompressParams&) {
  return {"compress", ""};
}
OpWork work_of(const CompressTokensParams&) {
  return {"compress_tokens", ""};
}
OpWork work_of(const StoreRowsParams&) {
  return {"store_rows", ""};
}
OpWork work_of(const IndexScoresParams& p) {
  const std::int64_t rows = std::accumulate(p.visible.begin(), p.visible.end(), std::int64_t{0});
  return {"index_scores", "", 0, 2 * product(rows, p.heads, p.dim)};
}
OpWork work_of(const IndexSelectParams& p) {
  const std::int64_t rows = std::accumulate(p.visible.begin(), p.visible.end(), std::int64_t{0});
  return {"index_select", "", 0, 2 * product(rows, p.heads, p.dim)};
}
OpWork work_of(const SparseAttentionParams& p) {
  std::int64_t rows = 0;
  for (const AttentionSegment& s : p.segments) {
    for (std::int64_t i = 0; i < s.count; ++i) {
      const std::int64_t visible = p.visible.empty() ? 0 : p.visible[static_cast<std::size_t>(s.begin + i)];
      rows += std::min(p.window_rows, s.start + i + 1) +
              (p.selected != nullptr ? std::min(p.k, visible) : visible);
    }
  }
  return {"sparse_attention", "", 0, 2 * product(rows, p.heads, p.row.dim + p.values())};
}
OpWork work_of(const HcPreParams&) {
  return {"hc_pre", ""};
}
OpWork work_of(const HcPostParams&) {
  return {"hc_post", ""};
}
OpWork work_of(const HcHeadParams&) {
  return {"hc_head", ""};
}
OpWork work_of(const GateParams&) {
  return {"gate", ""};
}
OpWork work_of(const ExpertsParams& p) {
  OpWork work{"experts", ""};
  std::int64_t slots = 0;  // (token, expert) pairs of this call
  if (p.shared != nullptr) {
    work.weight_bytes = stored_bytes(*p.shared);
    slots = p.n_tokens;
  }
  std::vector<bool> chosen(p.experts.size());
  for (std::int64_t i = 0; i < p.n_tokens * p.k; ++i) {
    const auto e = static_cast<std::size_t>(p.indices[i]);
    if (p.experts[e].w1.weight == nullptr) continue;
    ++slots;
    if (!chosen[e]) work.weight_bytes += stored_bytes(p.experts[e]);
    chosen[e] = true;
  }
  work.flops = 6 * product(slots, p.dim, p.inter);
  return work;
}

void Profile::add(const OpWork& work, double seconds) {
  auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) {
    return e.work.op == work.op && e.work.parameter == work.parameter;
  });
  if (entry == entries_.end()) entry = entries_.insert(entry, Entry{OpWork{work.op, work.parameter}});
  entry->work.weight_bytes += work.weight_bytes;
  entry->work.flops += work.flops;
  entry->calls += 1;
  entry->seconds += seconds;
}

}  // namespace hadal
