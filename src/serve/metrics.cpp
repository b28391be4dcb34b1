#include "serve/metrics.h"

#include <algorithm>

#include <fmt/format.h>

#include "serve/turn.h"

namespace hadal::serve {
namespace {

double seconds_between(SchedulerClock::time_point a, SchedulerClock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

// Label values come from fixed lists, but for the model's name.
std::string label(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

void line(std::string& out, std::string_view type, std::string_view name, std::string_view help,
          double value) {
  out += fmt::format("# HELP hadal:{0} {1}\n# TYPE hadal:{0} {2}\nhadal:{0} {3}\n", name, help, type, value);
}

}  // namespace

void Histogram::add(double value) {
  ++counts_[static_cast<std::size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) -
                                     bounds_.begin())];
  sum_ += value;
}

void Histogram::print(std::string& out, std::string_view name, std::string_view help) const {
  out += fmt::format("# HELP hadal:{0} {1}\n# TYPE hadal:{0} histogram\n", name, help);
  std::int64_t total = 0;
  for (std::size_t i = 0; i < bounds_.size(); ++i) {
    total += counts_[i];
    out += fmt::format("hadal:{}_bucket{{le=\"{}\"}} {}\n", name, bounds_[i], total);
  }
  total += counts_.back();
  out += fmt::format("hadal:{0}_bucket{{le=\"+Inf\"}} {1}\nhadal:{0}_sum {2}\nhadal:{0}_count {1}\n", name,
                     total, sum_);
}

std::vector<double> Metrics::seconds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
}

std::vector<double> Metrics::tokens() {
  return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10'000, 20'000, 50'000, 100'000, 1'000'000};
}

void Metrics::add(const TurnReport& report, std::int64_t max_tokens) {
  const GenerationEnd& end = report.end;
  const auto generated = static_cast<double>(report.result.usage.completion_tokens);
  const std::lock_guard lock(mutex_);
  const std::string_view reason = end.error                                    ? "error"
                                  : end.finish == FinishReason::cancelled      ? "abort"
                                  : report.result.finish == TurnFinish::length ? "length"
                                                                               : "stop";
  ++finished_[std::string(reason)];
  whole_.add(seconds_between(end.submitted, end.ended));
  queue_.add(seconds_between(end.submitted, end.admitted));
  if (generated == 0) return;
  first_token_.add(seconds_between(end.submitted, end.first_token));
  prefill_.add(seconds_between(end.admitted, end.first_token));
  decode_.add(seconds_between(end.first_token, end.ended));
  inference_.add(seconds_between(end.admitted, end.ended));
  if (generated > 1) inter_token_.add(seconds_between(end.first_token, end.ended) / (generated - 1));
  prompt_tokens_.add(static_cast<double>(report.result.usage.prompt_tokens));
  generated_tokens_.add(generated);
  max_tokens_.add(static_cast<double>(max_tokens));
}

void Metrics::add_response(std::string_view route, int status) {
  const std::lock_guard lock(mutex_);
  ++responses_[fmt::format("route=\"{}\",status=\"{}\"", route, status)];
}

std::string Metrics::print(const SchedulerStats& s, const DiskCache::Stats* disk, std::int64_t connections,
                           std::string_view model) const {
  std::string out;
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  line(out, "gauge", "num_requests_running", "Requests that are being answered.", number(s.running));
  line(out, "gauge", "num_requests_waiting", "Requests that wait to be admitted.", number(s.waiting));
  line(out, "gauge", "kv_cache_usage_perc", "Share of the memory for states that is used (1 is all).",
       s.state_budget > 0 ? number(s.state_bytes) / number(s.state_budget) : 0);
  line(out, "counter", "prefix_cache_queries", "Tokens of prompts looked up in the prefix cache.",
       number(s.prefix_queries));
  line(out, "counter", "prefix_cache_hits", "Tokens of prompts found there.", number(s.prefix_hits));
  line(out, "counter", "num_preemptions_total", "Sequences that had to wait again.", number(s.preemptions));
  line(out, "counter", "prompt_tokens_total", "Tokens of prompts that were read.", number(s.prompt_tokens));
  line(out, "counter", "generation_tokens_total", "Tokens that were sampled.", number(s.generated_tokens));
  line(out, "gauge", "prefix_cache_snapshots", "Snapshots in memory.", number(s.snapshots));
  line(out, "gauge", "http_connections", "Connections that are open.", number(connections));
  out +=
      "# HELP hadal:iteration_tokens_total Tokens per step.\n# TYPE hadal:iteration_tokens_total histogram\n";
  std::int64_t steps = 0;
  for (std::size_t i = 0; i < SchedulerStats::kStepBounds.size(); ++i) {
    steps += s.step_sizes[i];
    out += fmt::format("hadal:iteration_tokens_total_bucket{{le=\"{}\"}} {}\n",
                       SchedulerStats::kStepBounds[i], steps);
  }
  out += fmt::format(
      "hadal:iteration_tokens_total_bucket{{le=\"+Inf\"}} {0}\nhadal:iteration_tokens_total_sum {1}\n"
      "hadal:iteration_tokens_total_count {0}\n",
      s.steps, s.step_tokens);
  if (disk != nullptr) {
    line(out, "gauge", "disk_cache_files", "Prefixes on disk.", number(disk->files));
    line(out, "gauge", "disk_cache_bytes", "Bytes of them.", number(disk->bytes));
    line(out, "gauge", "disk_cache_budget_bytes", "Bytes that they may have.", number(disk->budget));
    line(out, "counter", "disk_cache_stored_total", "Prefixes written.", number(disk->stored));
    line(out, "counter", "disk_cache_loaded_total", "Prefixes read.", number(disk->loaded));
    line(out, "counter", "disk_cache_corrupt_total", "Files that were found broken.", number(disk->corrupt));
  }
  const std::lock_guard lock(mutex_);
  out +=
      "# HELP hadal:request_success_total Requests that ended.\n# TYPE hadal:request_success_total counter\n";
  for (const auto& [reason, count] : finished_)
    out += fmt::format("hadal:request_success_total{{finished_reason=\"{}\"}} {}\n", reason, count);
  out +=
      "# HELP hadal:http_responses_total Answers by route and status.\n# TYPE hadal:http_responses_total "
      "counter\n";
  for (const auto& [labels, count] : responses_)
    out += fmt::format("hadal:http_responses_total{{{}}} {}\n", labels, count);
  first_token_.print(out, "time_to_first_token_seconds", "From the request to its first token.");
  inter_token_.print(out, "inter_token_latency_seconds", "Between tokens, on average per request.");
  whole_.print(out, "e2e_request_latency_seconds", "From the request to its last token.");
  queue_.print(out, "request_queue_time_seconds", "Until it was admitted.");
  inference_.print(out, "request_inference_time_seconds", "From its admission to its last token.");
  prefill_.print(out, "request_prefill_time_seconds", "Reading its prompt.");
  decode_.print(out, "request_decode_time_seconds", "Writing its answer.");
  prompt_tokens_.print(out, "request_prompt_tokens", "Tokens of its prompt.");
  generated_tokens_.print(out, "request_generation_tokens", "Tokens of its answer.");
  max_tokens_.print(out, "request_params_max_tokens", "Tokens that it asked for at most.");
  out += fmt::format(
      "# HELP hadal:cache_config_info What the memory is divided by.\n# TYPE hadal:cache_config_info gauge\n"
      "hadal:cache_config_info{{block_size=\"128\",state_bytes=\"{}\",model=\"{}\"}} 1\n",
      s.state_budget, label(model));
  return out;
}

}  // namespace hadal::serve
