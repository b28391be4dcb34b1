#include "train/initial_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include <xxhash.h>

#include "base/rng.h"

namespace hadal {
namespace {

constexpr std::uint64_t kTableSeed = 0x6861646c;  // of the hash tables, in every run

// Four draws of N(0, 1) from one block, by Box and Muller.
std::array<double, 4> normals(const Philox& random, std::uint64_t counter) {
  const auto words = random.block(counter);
  std::array<double, 4> out{};
  for (std::size_t i = 0; i < 2; ++i) {
    const double u = (static_cast<double>(words[2 * i]) + 1) * 0x1p-32;  // in (0, 1]
    const double angle = 2 * std::numbers::pi * static_cast<double>(words[2 * i + 1]) * 0x1p-32;
    const double radius = std::sqrt(-2 * std::log(u));
    out[2 * i] = radius * std::cos(angle);
    out[2 * i + 1] = radius * std::sin(angle);
  }
  return out;
}

void fill_normal(std::span<float> out, const Philox& random, double deviation) {
  for (std::size_t i = 0; i < out.size(); i += 4) {
    const auto draws = normals(random, i / 4);
    for (std::size_t j = 0; j < 4 && i + j < out.size(); ++j)
      out[i + j] = static_cast<float>(deviation * draws[j]);
  }
}

// Rows of k distinct ids below n.
void fill_table(std::span<std::int32_t> out, const Philox& random, std::int64_t n, std::int64_t k) {
  std::vector<std::int32_t> taken;
  for (std::size_t row = 0; row * static_cast<std::size_t>(k) < out.size(); ++row) {
    taken.clear();
    for (std::int64_t i = 0; i < k; ++i) {
      const std::size_t at = row * static_cast<std::size_t>(k) + static_cast<std::size_t>(i);
      // The id-th of the n - i ids that are still free.
      auto id = static_cast<std::int32_t>(random.uniform(at) * static_cast<double>(n - i));
      std::size_t place = 0;
      for (; place < taken.size() && taken[place] <= id; ++place) ++id;
      taken.insert(taken.begin() + static_cast<std::ptrdiff_t>(place), id);
      out[at] = id;
    }
  }
}

// hc_*_base [(2+n)n] = pre, post, comb, or hc_head_base [n] = pre alone.
void fill_hc_base(std::span<float> out, std::int64_t n, CombStart comb) {
  const auto streams = static_cast<std::size_t>(n);
  const double others = static_cast<double>(n - 1);
  // sigmoid(b) = 1 / n; a single stream is passed on whole
  std::fill_n(out.begin(), streams, static_cast<float>(n > 1 ? -std::log(others) : 10));
  if (out.size() == streams) return;
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(streams), out.end(), 0.0F);  // 2 sigmoid(0) = 1
  if (comb == CombStart::uniform || n == 1) return;
  // A row's softmax is 0.9 on the diagonal: e^b / (e^b + n - 1) = 0.9.
  const auto diagonal = static_cast<float>(std::log(9 * others));
  for (std::size_t i = 0; i < streams; ++i) out[2 * streams + i * streams + i] = diagonal;
}

}  // namespace

ParameterSet initial_weights(const TrainingRecipe& recipe, ThreadPool& pool, ExpertPlacement placement) {
  const Config& config = recipe.config;
  ParameterSet set(config, placement);
  const auto parameters = set.parameters();
  const auto fill = [&](const Parameter& p) {
    if (!placement.holds(p.info)) return;
    const std::uint64_t stream = XXH3_64bits(p.info.name.data(), p.info.name.size());
    const Philox random(recipe.seed, stream);
    const auto values = set[p];
    switch (p.info.role) {
      case Role::embedding:
        return fill_normal(values, random, recipe.initial.embedding);
      case Role::head:
        return fill_normal(values, random, recipe.initial.head);
      case Role::norm:
        return std::fill(values.begin(), values.end(), 1.0F);
      case Role::hc_scale:
        return std::fill(values.begin(), values.end(), 0.01F);
      case Role::hc_base:
        return fill_hc_base(values, config.hc_mult, recipe.initial.comb);
      case Role::router_bias:
      case Role::position_bias:
      case Role::attention_sink:
        return;
      case Role::hash_table:
        return fill_table(set.table(p), Philox(kTableSeed, stream), config.n_routed_experts,
                          config.num_experts_per_tok);
      case Role::attention_projection:
      case Role::mtp_projection:
      case Role::expert:
      case Role::shared_expert:
      case Role::compressor_projection:
      case Role::index_weights:
      case Role::router:
      case Role::hc_mixer: {
        const bool output = p.info.name.ends_with(".wo_b.weight") || p.info.name.ends_with(".w2.weight");
        const double deviation = 1 / std::sqrt(static_cast<double>(p.info.shape[1]));
        return fill_normal(values, random, output ? deviation * recipe.initial.output : deviation);
      }
    }
  };
  pool.parallel_for(static_cast<std::int64_t>(parameters.size()), 1,
                    [&](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t i = begin; i < end; ++i)
                        fill(parameters[static_cast<std::size_t>(i)]);
                    });
  return set;
}

}  // namespace hadal
