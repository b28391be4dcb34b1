// Attention of whole sequences as matrix products. A block of consecutive queries, all heads of them, is one
// left operand [queries * H, c]; what they may see, the window rows of the oldest to the youngest and the
// compressed rows up to the youngest's last, is one right operand [J, c]. Scores that a query does not see
// are computed and given the probability 0: a few of the window's, and in the sparse stage those of rows that
// the indexer left out.
#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_training_backend.h"
#include "ops/cpu/query_block.h"

namespace hadal {
namespace {

// The rows that queries [begin, end) of a sequence may see: window rows from `oldest` on, then compressed
// ones.
struct SeenRows {
  SeenRows(const CausalAttentionShape& s, std::int64_t begin, std::int64_t end)
      : oldest(std::max<std::int64_t>(0, begin - s.window_rows + 1)),
        window(end - oldest),
        compressed(s.visible(end - 1)) {}
  std::int64_t count() const { return window + compressed; }

  std::int64_t oldest, window, compressed;
};

// A block of queries with its keys, and for each query which of these it sees.
class AttentionBlock : public cpu::QueryBlock {
 public:
  AttentionBlock(const CausalAttentionShape& s, const cpu::MatmulKernel& kernel)
      : QueryBlock(kernel), s_(s) {}

  // Queries [begin, end) of sequence b. kv, rows: of all sequences.
  void open(std::int64_t b, std::int64_t begin, std::int64_t end, const float* kv, const float* rows,
            const std::int32_t* selected) {
    const SeenRows all(s_, begin, end);
    keys_.resize(static_cast<std::size_t>(all.count() * s_.dim));
    std::copy_n(kv + (b * s_.length + all.oldest) * s_.dim, all.window * s_.dim, keys_.begin());
    if (all.compressed > 0)
      std::copy_n(rows + b * s_.n_rows * s_.dim, all.compressed * s_.dim,
                  keys_.begin() + all.window * s_.dim);
    QueryBlock::open((end - begin) * s_.heads, all.count(), s_.dim, keys_.data());

    seen_.assign(static_cast<std::size_t>((end - begin) * stride()), 0.0F);
    for (std::int64_t t = begin; t < end; ++t) {
      float* own = seen_.data() + (t - begin) * stride();
      const std::int64_t first = std::max<std::int64_t>(0, t - s_.window_rows + 1) - all.oldest;
      std::fill(own + first, own + t + 1 - all.oldest, 1.0F);
      if (selected == nullptr) {
        std::fill_n(own + all.window, s_.visible(t), 1.0F);
      } else {
        const std::int32_t* chosen = selected + (b * s_.length + t) * s_.k;
        for (std::int64_t i = 0; i < s_.k && chosen[i] >= 0; ++i) own[all.window + chosen[i]] = 1.0F;
      }
    }
    scores_.resize(static_cast<std::size_t>(left() * stride()));
  }
  float* scores() { return scores_.data(); }
  // 1 for the keys that the query of this row of scores sees, else 0.
  const float* seen(std::int64_t row) const { return seen_.data() + row / s_.heads * stride(); }

 private:
  const CausalAttentionShape& s_;
  std::vector<float> keys_, seen_, scores_;
};

float inverse_root(std::int64_t dim) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
}

}  // namespace

void CpuTrainingBackend::causal_attention(const CausalAttentionParams& p) {
  const CausalAttentionShape& s = p.shape;
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = cpu::queries_of_block(s.heads), blocks = (s.length + step - 1) / step;
  const float scale = inverse_root(s.dim);
  pool_.parallel_for(s.sequences * blocks, 1, [&](std::int64_t first, std::int64_t last) {
    AttentionBlock block(s, kernel);
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t b = unit / blocks, begin = unit % blocks * step,
                         end = std::min(begin + step, s.length);
      const std::int64_t at = (b * s.length + begin) * s.heads * s.dim;
      block.open(b, begin, end, p.kv, p.rows, p.selected);
      block.score(p.q + at, block.scores());
      const std::int64_t stride = block.stride(), window = SeenRows(s, begin, end).window;
      if (p.mass != nullptr)
        std::fill_n(p.mass + (b * s.length + begin) * s.n_rows, (end - begin) * s.n_rows, 0.0F);
      for (std::int64_t i = 0; i < block.left(); ++i) {
        float* own = block.scores() + i * stride;
        kernels_.attention_probabilities(own, block.seen(i), stride, scale, p.sink[i % s.heads]);
        if (p.mass == nullptr) continue;
        float* mass = p.mass + (b * s.length + begin + i / s.heads) * s.n_rows;
        for (std::int64_t r = 0; r < block.count() - window; ++r) mass[r] += own[window + r];
      }
      if (p.out != nullptr) block.mix_keys(block.scores(), p.out + at);
    }
  });
}

// Blocks of queries share rows, so each leaves what it adds to its rows' gradients in a place of its own; the
// places are added up in ascending order, a wave of blocks at a time.
void CpuTrainingBackend::causal_attention_backward(const CausalAttentionBackwardParams& p) {
  const CausalAttentionShape& s = p.shape;
  if (s.dim % 16 != 0) return ref::causal_attention_backward(p, pool_);
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = cpu::queries_of_block(s.heads), blocks = (s.length + step - 1) / step;
  const std::int64_t wave_blocks = std::min(cpu::kWaveBlocks, blocks);
  const std::int64_t most_rows = std::min(s.length, s.window_rows + step - 1) + s.n_rows;
  const std::int64_t place = most_rows * s.dim, sinks = s.sequences * s.length * s.heads;
  float* d_sinks = scratch(s.sequences * wave_blocks * place + sinks);
  float* places = d_sinks + sinks;
  const float scale = inverse_root(s.dim);
  std::fill_n(p.d_kv, s.sequences * s.length * s.dim, 0.0F);
  std::fill_n(p.d_rows, s.sequences * s.n_rows * s.dim, 0.0F);

  for (std::int64_t wave = 0; wave < blocks; wave += wave_blocks) {
    const std::int64_t of_wave = std::min(wave_blocks, blocks - wave);
    pool_.parallel_for(s.sequences * of_wave, 1, [&](std::int64_t first, std::int64_t last) {
      AttentionBlock block(s, kernel);
      std::vector<float> d_scores;
      for (std::int64_t unit = first; unit < last; ++unit) {
        const std::int64_t b = unit / of_wave, begin = (wave + unit % of_wave) * step;
        block.open(b, begin, std::min(begin + step, s.length), p.kv, p.rows, p.selected);
        const std::int64_t at = (b * s.length + begin) * s.heads * s.dim, stride = block.stride();
        block.score(p.q + at, block.scores());
        d_scores.resize(static_cast<std::size_t>(block.left() * stride));
        block.score(p.d_out + at, d_scores.data());
        for (std::int64_t i = 0; i < block.left(); ++i) {
          float* own = block.scores() + i * stride;
          const float sink =
              kernels_.attention_probabilities(own, block.seen(i), stride, scale, p.sink[i % s.heads]);
          const float along = kernels_.dot_product(p.d_out + at + i * s.dim, p.out + at + i * s.dim, s.dim);
          d_sinks[at / s.dim + i] = -sink * along;
          kernels_.attention_score_gradients(own, along, scale, stride, d_scores.data() + i * stride);
        }
        block.mix_keys(d_scores.data(), p.d_q + at);
        float* d_keys = places + unit * place;
        block.gather(d_scores.data(), p.q + at, d_keys, false);
        block.gather(block.scores(), p.d_out + at, d_keys, true);
      }
    });
    // Every channel of a sequence belongs to one thread.
    constexpr std::int64_t kChannels = 16;
    const std::int64_t chunks = (s.dim + kChannels - 1) / kChannels;
    pool_.parallel_for(s.sequences * chunks, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t unit = first; unit < last; ++unit) {
        const std::int64_t b = unit / chunks, c = unit % chunks * kChannels,
                           n = std::min(kChannels, s.dim - c);
        const auto add = [&](const float* from, std::int64_t rows, float* to) {
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t i = 0; i < n; ++i) to[r * s.dim + c + i] += from[r * s.dim + c + i];
          }
        };
        for (std::int64_t i = 0; i < of_wave; ++i) {
          const std::int64_t begin = (wave + i) * step;
          const SeenRows seen(s, begin, std::min(begin + step, s.length));
          const float* from = places + (b * of_wave + i) * place;
          add(from, seen.window, p.d_kv + (b * s.length + seen.oldest) * s.dim);
          add(from + seen.window * s.dim, seen.compressed, p.d_rows + b * s.n_rows * s.dim);
        }
      }
    });
  }
  for (std::int64_t i = 0; i < sinks; ++i) p.d_sink[i % s.heads] += d_sinks[i];
}

}  // namespace hadal
