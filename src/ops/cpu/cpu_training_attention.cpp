// Attention of whole sequences as matrix products. A block of consecutive queries, all heads of them, is one
// left operand [queries * H, c]; what they may see, the window rows of the oldest to the youngest and the
// compressed rows up to the youngest's last, is one right operand [J, c]. Scores that a query does not see
// are computed and given the probability 0: a few of the window's, and in the sparse stage those of rows that
// the indexer left out.
#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_training_backend.h"
#include "ops/cpu/packed_matrix.h"

namespace hadal {
namespace {

using cpu::MatmulKernel;
using cpu::PackedMatrix;

constexpr std::int64_t kBlockRows = 64;    // of the left operand, about
constexpr std::int64_t kMostQueries = 64;  // of a block

std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

std::int64_t queries_of_block(const CausalAttentionShape& s) {
  return std::clamp<std::int64_t>(kBlockRows / s.heads, 1, kMostQueries);
}

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

// A thread's memory for one block of queries.
class Block {
 public:
  Block(const CausalAttentionShape& s, const MatmulKernel& kernel) : s_(s), kernel_(kernel) {}

  // Queries [begin, end) of sequence b. kv, rows: of all sequences.
  void open(std::int64_t b, std::int64_t begin, std::int64_t end, const float* kv, const float* rows,
            const std::int32_t* selected) {
    b_ = b;
    begin_ = begin;
    queries_ = end - begin;
    const SeenRows seen(s_, begin, end);
    count_ = seen.count();
    stride_ = round_up(count_, kernel_.b_width);
    keys_.resize(static_cast<std::size_t>(count_ * s_.dim));
    std::copy_n(kv + (b * s_.length + seen.oldest) * s_.dim, seen.window * s_.dim, keys_.begin());
    if (seen.compressed > 0)
      std::copy_n(rows + b * s_.n_rows * s_.dim, seen.compressed * s_.dim,
                  keys_.begin() + seen.window * s_.dim);

    seen_.assign(static_cast<std::size_t>(queries_ * stride_), 0.0F);
    for (std::int64_t t = begin; t < end; ++t) {
      float* own = seen_.data() + (t - begin) * stride_;
      const std::int64_t first = std::max<std::int64_t>(0, t - s_.window_rows + 1) - seen.oldest;
      std::fill(own + first, own + t + 1 - seen.oldest, 1.0F);
      if (selected == nullptr) {
        std::fill_n(own + seen.window, s_.visible(t), 1.0F);
      } else {
        const std::int32_t* chosen = selected + (b * s_.length + t) * s_.k;
        for (std::int64_t i = 0; i < s_.k && chosen[i] >= 0; ++i) own[seen.window + chosen[i]] = 1.0F;
      }
    }
    scores_.resize(static_cast<std::size_t>(left() * stride_));
    right_ = PackedMatrix(kernel_, false, count_, s_.dim);
    right_words_.resize(static_cast<std::size_t>(right_.words()));
    right_.pack(keys_.data(), s_.dim, false, right_words_.data());
  }

  std::int64_t left() const { return queries_ * s_.heads; }  // rows of the left operand
  std::int64_t count() const { return count_; }
  std::int64_t stride() const { return stride_; }
  float* scores() { return scores_.data(); }
  const float* seen(std::int64_t query) const { return seen_.data() + query * stride_; }
  // Where the block's rows of a [N, H, c] array begin.
  std::int64_t offset() const { return (b_ * s_.length + begin_) * s_.heads * s_.dim; }

  // out [left, stride] = x [left, c] keys^T
  void times_keys_transposed(const float* x, float* out) {
    const PackedMatrix a = pack_left(x, s_.dim, false, left(), s_.dim);
    // Whole panels, whose columns behind the last row are 0.
    for (std::int64_t j = 0; j < right_.panels(); ++j) {
      for (std::int64_t i = 0; i < a.panels(); ++i) {
        for (std::int64_t k = 0; k < s_.dim; k += cpu::kMatmulDepth) {
          kernel_.multiply(left_words_.data() + a.place(i, k), right_words_.data() + right_.place(j, k),
                           a.units_at(k), a.rows_of(i), kernel_.b_width,
                           out + i * a.width() * stride_ + j * kernel_.b_width, stride_, k > 0);
        }
      }
    }
  }
  // out [left, c] = p [left, stride] keys
  void times_keys(const float* p, float* out) {
    const PackedMatrix a = pack_left(p, stride_, false, left(), count_);
    const PackedMatrix b(kernel_, false, s_.dim, count_);
    product(a, b, keys_.data(), s_.dim, true, out, s_.dim, false);
  }
  // out [J, c] (+)= p^T [J, left] x [left, c]
  void gather_keys(const float* p, const float* x, float* out, bool accumulate) {
    const PackedMatrix a = pack_left(p, stride_, true, count_, left());
    const PackedMatrix b(kernel_, false, s_.dim, left());
    product(a, b, x, s_.dim, true, out, s_.dim, accumulate);
  }

 private:
  PackedMatrix pack_left(const float* x, std::int64_t stride, bool transposed, std::int64_t rows,
                         std::int64_t depth) {
    const PackedMatrix a(kernel_, true, rows, depth);
    left_words_.resize(static_cast<std::size_t>(a.words()));
    a.pack(x, stride, transposed, left_words_.data());
    return a;
  }
  void product(const PackedMatrix& a, const PackedMatrix& b, const float* x, std::int64_t stride,
               bool transposed, float* c, std::int64_t c_stride, bool accumulate) {
    other_words_.resize(static_cast<std::size_t>(b.words()));
    b.pack(x, stride, transposed, other_words_.data());
    multiply_panels(kernel_, a, left_words_.data(), 0, a.panels(), b, other_words_.data(), 0, b.panels(), c,
                    c_stride, accumulate);
  }

  const CausalAttentionShape& s_;
  const MatmulKernel& kernel_;
  std::int64_t b_ = 0, begin_ = 0, queries_ = 0, count_ = 0, stride_ = 0;
  std::vector<float> keys_, seen_, scores_;
  PackedMatrix right_;
  std::vector<std::uint32_t> left_words_, right_words_, other_words_;
};

float inverse_root(std::int64_t dim) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
}

}  // namespace

void CpuTrainingBackend::causal_attention(const CausalAttentionParams& p) {
  const CausalAttentionShape& s = p.shape;
  const MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = queries_of_block(s), blocks = (s.length + step - 1) / step;
  const float scale = inverse_root(s.dim);
  pool_.parallel_for(s.sequences * blocks, 1, [&](std::int64_t first, std::int64_t last) {
    Block block(s, kernel);
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t b = unit / blocks, begin = unit % blocks * step,
                         end = std::min(begin + step, s.length);
      block.open(b, begin, end, p.kv, p.rows, p.selected);
      block.times_keys_transposed(p.q + block.offset(), block.scores());
      const std::int64_t stride = block.stride(), window = SeenRows(s, begin, end).window;
      if (p.mass != nullptr)
        std::fill_n(p.mass + (b * s.length + begin) * s.n_rows, (end - begin) * s.n_rows, 0.0F);
      for (std::int64_t i = 0; i < block.left(); ++i) {
        float* own = block.scores() + i * stride;
        kernels_.attention_probabilities(own, block.seen(i / s.heads), stride, scale, p.sink[i % s.heads]);
        if (p.mass == nullptr) continue;
        float* mass = p.mass + (b * s.length + begin + i / s.heads) * s.n_rows;
        for (std::int64_t r = 0; r < block.count() - window; ++r) mass[r] += own[window + r];
      }
      if (p.out != nullptr) block.times_keys(block.scores(), p.out + block.offset());
    }
  });
}

// Blocks of queries share rows, so each leaves what it adds to its rows' gradients in a place of its own; the
// places are added up in ascending order, a wave of blocks at a time.
void CpuTrainingBackend::causal_attention_backward(const CausalAttentionBackwardParams& p) {
  const CausalAttentionShape& s = p.shape;
  if (s.dim % 16 != 0) return ref::causal_attention_backward(p, pool_);
  const MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = queries_of_block(s), blocks = (s.length + step - 1) / step;
  constexpr std::int64_t kWave = 16;  // blocks of each sequence; fixed, as it is part of the order of sums
  const std::int64_t wave_blocks = std::min(kWave, blocks);
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
      Block block(s, kernel);
      std::vector<float> d_scores;
      for (std::int64_t unit = first; unit < last; ++unit) {
        const std::int64_t b = unit / of_wave, begin = (wave + unit % of_wave) * step;
        block.open(b, begin, std::min(begin + step, s.length), p.kv, p.rows, p.selected);
        const std::int64_t at = block.offset(), stride = block.stride();
        block.times_keys_transposed(p.q + at, block.scores());
        d_scores.resize(static_cast<std::size_t>(block.left() * stride));
        block.times_keys_transposed(p.d_out + at, d_scores.data());
        for (std::int64_t i = 0; i < block.left(); ++i) {
          float* own = block.scores() + i * stride;
          const float sink = kernels_.attention_probabilities(own, block.seen(i / s.heads), stride, scale,
                                                              p.sink[i % s.heads]);
          const float along = kernels_.dot_product(p.d_out + at + i * s.dim, p.out + at + i * s.dim, s.dim);
          d_sinks[at / s.dim + i] = -sink * along;
          kernels_.attention_score_gradients(own, along, scale, stride, d_scores.data() + i * stride);
        }
        block.times_keys(d_scores.data(), p.d_q + at);
        float* d_keys = places + unit * place;
        block.gather_keys(d_scores.data(), p.q + at, d_keys, false);
        block.gather_keys(block.scores(), p.d_out + at, d_keys, true);
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
