// What a request changes about the logits before a token is sampled: biases, penalties for repetition, and a
// constraint that forbids what would break a grammar.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace hadal {

// Forbids tokens, as a function of those sampled so far. Used by one sequence.
class TokenConstraint {
 public:
  TokenConstraint() = default;
  TokenConstraint(const TokenConstraint&) = delete;
  TokenConstraint& operator=(const TokenConstraint&) = delete;
  virtual ~TokenConstraint() = default;

  // Whether anything is forbidden now; if not, mask() need not be asked.
  virtual bool active() const = 0;
  // Sets the logits of forbidden tokens to -infinity; at least one stays.
  virtual void mask(std::span<float> logits) = 0;
  virtual void accept(std::int32_t token) = 0;
};

class LogitRules {
 public:
  std::vector<std::pair<std::int32_t, float>> bias;  // added to the logit of a token
  double presence_penalty = 0;                       // taken from the logit of every token sampled before
  double frequency_penalty = 0;                      // taken as often as it was sampled
  std::shared_ptr<TokenConstraint> constraint;

  bool active() const;
  // Changes `logits`, [vocab], in place.
  void apply(std::span<float> logits) const;
  void accept(std::int32_t token);

 private:
  std::map<std::int32_t, std::int64_t> counts_;  // of the tokens sampled so far
};

}  // namespace hadal
