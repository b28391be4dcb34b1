#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
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

namespace {

// Tokens whose probabilities are summed in float32 before float64 takes over.
constexpr std::size_t kBlock = 64;
constexpr std::size_t kLanes = 16;

// x or 0, without a branch, which would keep a loop from becoming vector code.
inline float keep_if(bool condition, float x) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & (0U - static_cast<std::uint32_t>(condition)));
}

// e^x to within 2e-7 relative for x in [-87, 0], 0 below and for NaN. x = n ln 2 + r with |r| <= ln 2 / 2, as
// in ops/cpu/vector_math.inc.
inline float exp_or_zero(float x) {
  const float in_range = x >= -87.0F ? x : -87.0F;
  const float n = (in_range * 1.44269504F + 0x1.8p23F) - 0x1.8p23F;  // rounded to an integer
  const float r = (in_range - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.0F / 5040;
  p = p * r + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const float power = std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
  return keep_if(x >= -87.0F, p * power);
}

// The largest; -inf if there are only NaNs.
float maximum(std::span<const float> x) {
  float lane[kLanes];
  std::fill_n(lane, kLanes, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float a = x[i + j], b = lane[j];
      lane[j] = a > b ? a : b;
    }
  }
  for (; i < x.size(); ++i) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  return *std::max_element(lane, lane + kLanes);
}

}  // namespace

bool Sampler::better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

float Sampler::weight(float logit) const {
  return exp_or_zero((logit - best_.logit) * inverse_temperature_);
}

// Of the tokens of a block that are no worse than `last`.
double Sampler::block_mass(std::size_t begin, const Candidate& last) const {
  // Copies, and & and | instead of && and ||, for the same reason as keep_if.
  const float best = best_.logit, inverse = inverse_temperature_, last_logit = last.logit;
  const auto last_place = static_cast<std::int32_t>(last.token - static_cast<std::int64_t>(begin));
  const auto term = [=](float logit, std::int32_t place) {
    return keep_if((logit > last_logit) | ((logit == last_logit) & (place <= last_place)),
                   exp_or_zero((logit - best) * inverse));
  };
  float terms[kBlock];
  const float* x = logits_.data() + begin;
  const auto n = static_cast<std::int32_t>(std::min(kBlock, logits_.size() - begin));
  if (n == static_cast<std::int32_t>(kBlock)) {
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(kBlock); ++i) terms[i] = term(x[i], i);
  } else {
    std::fill_n(terms, kBlock, 0.0F);
    for (std::int32_t i = 0; i < n; ++i) terms[i] = term(x[i], i);
  }
  for (std::size_t half = kBlock / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
  return double{terms[0]};
}

double Sampler::mass(const Candidate& last) const {
  double sum = 0;
  for (std::size_t begin = 0; begin < logits_.size(); begin += kBlock) sum += block_mass(begin, last);
  return sum;
}

// The `count` best, in no order. A candidate must beat the worst that is certain to stay; once the buffer has
// twice as many as wanted, it is cut to the best half, which raises that bar.
void Sampler::collect_best(std::size_t count) {
  candidates_.clear();
  const std::size_t room = std::max<std::size_t>(2 * count, 512);
  candidates_.reserve(room);
  const auto cut = [&] {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count - 1),
                     candidates_.end(), better);
    candidates_.resize(count);
  };
  bool full = false;
  float bar = 0;
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    // A later token loses against an equal one.
    if (full && !(logits_[i] > bar)) continue;
    const float logit = std::isnan(logits_[i]) ? -std::numeric_limits<float>::infinity() : logits_[i];
    candidates_.push_back({logit, static_cast<std::int32_t>(i)});
    if (candidates_.size() < room) continue;
    cut();
    full = true;
    bar = candidates_[count - 1].logit;
  }
  if (candidates_.size() > count) cut();
}

// The worst token of the smallest set of best ones, none worse than `last`, that has `wanted` of the mass.
Sampler::Candidate Sampler::nucleus(double wanted, const Candidate& last) {
  // Few tokens carry most of the mass, as a rule.
  constexpr std::size_t kFirst = 512;
  collect_best(std::min(kFirst, logits_.size()));
  std::sort(candidates_.begin(), candidates_.end(), better);
  double reached = 0;
  for (const Candidate& c : candidates_) {
    reached += double{weight(c.logit)};
    if (reached >= wanted || !better(c, last)) return c;
  }
  if (candidates_.size() == logits_.size()) return last;
  // Else by bisection: split what is left at its median; the half that holds the end goes on.
  candidates_.clear();
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    const Candidate c{logits_[i], static_cast<std::int32_t>(i)};
    if (!std::isnan(c.logit) && !better(last, c)) candidates_.push_back(c);
  }
  auto begin = candidates_.begin(), end = candidates_.end();
  reached = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;  // [begin, middle) is better than [middle, end)
    std::nth_element(begin, middle, end, better);
    double half = 0;
    for (auto c = begin; c < middle; ++c) half += double{weight(c->logit)};
    if (reached + half >= wanted) {
      end = middle;
    } else {
      reached += half;
      begin = middle;
    }
  }
  return *begin;
}

// The token at which the running sum over ids passes `target`.
std::int32_t Sampler::draw(double target, const Candidate& last) const {
  double reached = 0;
  std::int32_t chosen = best_.token;
  for (std::size_t begin = 0; begin < logits_.size(); begin += kBlock) {
    const double block = block_mass(begin, last);
    if (block == 0) continue;
    const bool here = target < reached + block;
    double inside = reached;
    for (std::size_t i = begin; i < std::min(begin + kBlock, logits_.size()); ++i) {
      const Candidate c{logits_[i], static_cast<std::int32_t>(i)};
      if (std::isnan(c.logit) || better(last, c) || weight(c.logit) == 0) continue;
      chosen = c.token;
      inside += double{weight(c.logit)};
      if (here && target < inside) return chosen;
    }
    // Rounding may put the target behind the last token of its block: then it is that one.
    if (here) return chosen;
    reached += block;
  }
  return chosen;
}

Sample Sampler::sample(std::span<const float> logits, const SamplingOptions& options, std::uint64_t position,
                       std::int64_t n_top) {
  HADAL_CHECK(!logits.empty());
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  logits_ = logits;
  const Candidate everything{-kInfinity, std::numeric_limits<std::int32_t>::max()};
  best_ = {maximum(logits), 0};
  if (best_.logit > -kInfinity)
    best_.token =
        static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), best_.logit) - logits.begin());
  inverse_temperature_ = 1;
  const double log_total = double{best_.logit} + std::log(mass(everything));
  const auto logprob = [&](float logit) { return double{logit} - log_total; };

  Sample result;
  result.token = best_.token;
  if (options.temperature > 0) {
    inverse_temperature_ = static_cast<float>(1 / options.temperature);
    Candidate last = everything;  // the worst token that may be drawn
    if (options.min_p > 0) {
      last.logit = static_cast<float>(double{best_.logit} + options.temperature * std::log(options.min_p));
    }
    if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < logits.size()) {
      collect_best(static_cast<std::size_t>(options.top_k));
      last = std::min(last, *std::max_element(candidates_.begin(), candidates_.end(), better), better);
    }
    if (options.top_p < 1) last = nucleus(options.top_p * mass(last), last);
    result.token = draw(Philox(options.seed, 0).uniform(position) * mass(last), last);
  }
  result.logprob = logprob(logits[static_cast<std::size_t>(result.token)]);

  const auto n_reported =
      static_cast<std::size_t>(std::clamp<std::int64_t>(n_top, 0, static_cast<std::int64_t>(logits.size())));
  if (n_reported > 0) {
    collect_best(n_reported);
    std::sort(candidates_.begin(), candidates_.end(), better);
    for (const Candidate& c : candidates_) result.top.push_back({c.token, logprob(c.logit)});
  }
  return result;
}

}  // namespace hadal
