#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <fmt/format.h>

#include "base/check.h"
#include "base/rng.h"

namespace hadal {

Status SamplingOptions::validate() const {
  const auto wrong = [](const char* name, auto value, const char* range) {
    return fail(ErrorCode::invalid_argument, fmt::format("{} is {}, expected {}", name, value, range));
  };
  if (!(temperature >= 0 && temperature <= 100)) return wrong("temperature", temperature, "0 to 100");
  if (!(top_p > 0 && top_p <= 1)) return wrong("top_p", top_p, "above 0 and at most 1");
  if (top_k < 0) return wrong("top_k", top_k, "0 (all) or more");
  if (!(min_p >= 0 && min_p <= 1)) return wrong("min_p", min_p, "0 to 1");
  return {};
}

Sample Sampler::sample(std::span<const float> logits, const SamplingOptions& options, std::uint64_t position,
                       std::int64_t n_top) {
  HADAL_CHECK(!logits.empty());
  candidates_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    candidates_[i] = {logit, static_cast<std::int32_t>(i)};
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  // Brings the best `count` of [0, end) to the front, best first.
  const auto sort_best = [&](std::size_t count, std::size_t end) {
    const auto begin = candidates_.begin();
    std::partial_sort(begin, begin + static_cast<std::ptrdiff_t>(count),
                      begin + static_cast<std::ptrdiff_t>(end), better);
  };

  const Candidate best = *std::min_element(candidates_.begin(), candidates_.end(), better);
  double total = 0;
  for (const Candidate& c : candidates_) total += std::exp(double{c.logit} - double{best.logit});
  const double log_total = double{best.logit} + std::log(total);
  const auto logprob = [&](const Candidate& c) { return double{c.logit} - log_total; };

  Sample result;
  const auto draw = [&](const Candidate& picked) {
    result.token = picked.token;
    result.logprob = logprob(picked);
  };
  if (options.temperature == 0) {
    draw(best);
  } else {
    const auto weight = [&](const Candidate& c) {
      return std::exp((double{c.logit} - double{best.logit}) / options.temperature);
    };
    std::size_t count = candidates_.size();
    if (options.min_p > 0) {
      const auto unlikely = [&](const Candidate& c) { return weight(c) < options.min_p; };
      count = static_cast<std::size_t>(
          std::stable_partition(candidates_.begin(), candidates_.end(), std::not_fn(unlikely)) -
          candidates_.begin());
    }
    if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < count) {
      sort_best(static_cast<std::size_t>(options.top_k), count);
      count = static_cast<std::size_t>(options.top_k);
    }
    double mass = 0;
    for (std::size_t i = 0; i < count; ++i) mass += weight(candidates_[i]);
    if (options.top_p < 1) {
      // Few tokens carry most of the mass, so the sorted front grows only as far as it must.
      const double wanted = options.top_p * mass;
      std::size_t sorted = 0, kept = 0;
      for (mass = 0; kept < count && (kept == 0 || mass < wanted); ++kept) {
        if (kept == sorted) {
          sorted = std::min(count, std::max<std::size_t>(256, 4 * sorted));
          sort_best(sorted, count);
        }
        mass += weight(candidates_[kept]);
      }
      count = kept;
    }
    const double target = Philox(options.seed, 0).uniform(position) * mass;
    double reached = 0;
    std::size_t chosen = 0;
    for (; chosen + 1 < count; ++chosen) {
      reached += weight(candidates_[chosen]);
      if (target < reached) break;
    }
    draw(candidates_[chosen]);
  }

  const auto n_reported =
      static_cast<std::size_t>(std::clamp<std::int64_t>(n_top, 0, static_cast<std::int64_t>(logits.size())));
  sort_best(n_reported, candidates_.size());
  for (std::size_t i = 0; i < n_reported; ++i)
    result.top.push_back({candidates_[i].token, logprob(candidates_[i])});
  return result;
}

}  // namespace hadal
