// The indexer's scores of whole sequences as matrix products over blocks of queries (query_block.h): the dots
// of all heads with all rows that the youngest query of the block may see, then relu, weights and the sum
// over heads.
#include <algorithm>
#include <vector>

#include "ops/cpu/cpu_training_backend.h"
#include "ops/cpu/query_block.h"

namespace hadal {
namespace {

void relu(float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] > 0 ? x[i] : 0.0F;
}

}  // namespace

void CpuTrainingBackend::causal_index_scores(const CausalIndexScoresParams& p) {
  const CausalAttentionShape& s = p.shape;
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = cpu::queries_of_block(s.heads), blocks = (s.length + step - 1) / step;
  pool_.parallel_for(s.sequences * blocks, 1, [&](std::int64_t first, std::int64_t last) {
    cpu::QueryBlock block(kernel);
    std::vector<float> dots;
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t b = unit / blocks, begin = unit % blocks * step,
                         end = std::min(begin + step, s.length);
      const std::int64_t token = b * s.length + begin;
      std::fill_n(p.scores + token * s.n_rows, (end - begin) * s.n_rows, 0.0F);
      if (s.visible(end - 1) == 0) continue;
      block.open((end - begin) * s.heads, s.visible(end - 1), s.dim, p.rows + b * s.n_rows * s.dim);
      dots.resize(static_cast<std::size_t>(block.left() * block.stride()));
      block.score(p.q + token * s.heads * s.dim, dots.data());
      relu(dots.data(), block.left() * block.stride());
      for (std::int64_t i = 0; i < block.left(); ++i) {
        const float* own = dots.data() + i * block.stride();
        const float weight = p.weights[token * s.heads + i];
        float* scores = p.scores + (token + i / s.heads) * s.n_rows;
        const std::int64_t visible = s.visible(begin + i / s.heads);
        for (std::int64_t r = 0; r < visible; ++r) scores[r] += weight * own[r];
      }
    }
  });
}

// As in attention, blocks of queries share rows and leave what they add to them in places of their own.
void CpuTrainingBackend::causal_index_scores_backward(const CausalIndexScoresBackwardParams& p) {
  const CausalAttentionShape& s = p.shape;
  const cpu::MatmulKernel& kernel = cpu::matmul_kernel(s.bf16);
  const std::int64_t step = cpu::queries_of_block(s.heads), blocks = (s.length + step - 1) / step;
  const std::int64_t wave_blocks = std::min(cpu::kWaveBlocks, blocks), place = s.n_rows * s.dim;
  float* places = scratch(s.sequences * wave_blocks * place);
  std::fill_n(p.d_rows, s.sequences * place, 0.0F);
  for (std::int64_t wave = 0; wave < blocks; wave += wave_blocks) {
    const std::int64_t of_wave = std::min(wave_blocks, blocks - wave);
    pool_.parallel_for(s.sequences * of_wave, 1, [&](std::int64_t first, std::int64_t last) {
      cpu::QueryBlock block(kernel);
      std::vector<float> dots, d_scores;
      for (std::int64_t unit = first; unit < last; ++unit) {
        const std::int64_t b = unit / of_wave, begin = (wave + unit % of_wave) * step;
        const std::int64_t end = std::min(begin + step, s.length), token = b * s.length + begin;
        const std::int64_t rows = s.visible(end - 1);
        float* d_q = p.d_q + token * s.heads * s.dim;
        if (rows == 0) {
          std::fill_n(d_q, (end - begin) * s.heads * s.dim, 0.0F);
          std::fill_n(p.d_weights + token * s.heads, (end - begin) * s.heads, 0.0F);
          continue;
        }
        block.open((end - begin) * s.heads, rows, s.dim, p.rows + b * place);
        const std::int64_t stride = block.stride();
        dots.resize(static_cast<std::size_t>(block.left() * stride));
        block.score(p.q + token * s.heads * s.dim, dots.data());
        relu(dots.data(), block.left() * stride);
        for (std::int64_t i = 0; i < block.left(); ++i) {
          const std::int64_t query = i / s.heads;
          d_scores.assign(static_cast<std::size_t>(stride), 0.0F);
          std::copy_n(p.d_scores + (token + query) * s.n_rows, s.visible(begin + query), d_scores.begin());
          // relu(dot), then d_dot = weight * d_score where the relu is open.
          float* own = dots.data() + i * stride;
          const float weight = p.weights[token * s.heads + i];
          p.d_weights[token * s.heads + i] = kernels_.dot_product(d_scores.data(), own, stride);
          for (std::int64_t r = 0; r < stride; ++r)
            own[r] = own[r] > 0 ? weight * d_scores[static_cast<std::size_t>(r)] : 0.0F;
        }
        block.mix_keys(dots.data(), d_q);
        block.gather(dots.data(), p.q + token * s.heads * s.dim, places + unit * place, false);
      }
    });
    pool_.parallel_for(s.sequences * s.n_rows, 16, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const std::int64_t b = row / s.n_rows, r = row % s.n_rows;
        for (std::int64_t i = 0; i < of_wave; ++i) {
          if (r >= s.visible(std::min((wave + i + 1) * step, s.length) - 1)) continue;
          const float* from = places + (b * of_wave + i) * place + r * s.dim;
          for (std::int64_t c = 0; c < s.dim; ++c) p.d_rows[row * s.dim + c] += from[c];
        }
      }
    });
  }
}

}  // namespace hadal
