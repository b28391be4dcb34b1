// hadal plan: memory, FLOPs, attainable speed and cost of a model on a machine, counted.
#include "plan/plan.h"

#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/file_writer.h"
#include "base/readable.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/text_io.h"
#include "plan/host.h"
#include "plan/report.h"

namespace hadal::cli {
namespace {

using Json = nlohmann::ordered_json;

struct PlanArguments {
  std::string model, preset, against, hardware = "h200x8", save_hardware, html, numerics = "official";
  std::int64_t layers = 0, experts = 0;
  int threads = 0;
  std::vector<std::int64_t> check_host;
  PlanRequest request;
  bool json = false;
};

struct PlanReport {
  ModelPlan model;
  std::optional<ModelPlan> against;
  HardwareProfile hardware;
  MachinePlan machine;
  std::optional<MachinePlan> against_machine;
  std::vector<CurvePoint> curve, against_curve;
};

Result<Config> planned_config(const PlanArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(Config config, arguments.preset.empty() ? load_config(arguments.model)
                                                                 : preset_config(arguments.preset));
  return cut_config(std::move(config), arguments.layers, arguments.experts);
}

Result<HardwareProfile> chosen_hardware(const PlanArguments& arguments, const Config& config) {
  if (arguments.hardware != "host") return load_profile(arguments.hardware);
  ThreadPool pool(arguments.threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend, make_backend("cpu", "", pool));
  HADAL_ASSIGN_OR_RETURN(const Numerics numerics, numerics_from_string(arguments.numerics));
  notice("measuring this machine with two layers of the model's shapes");
  return measure_host(config, numerics, *backend, pool);
}

// --check-host: instead of a plan, whether plans for this machine come true on it.
Status check(const PlanArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const Config config, planned_config(arguments));
  ThreadPool pool(arguments.threads);
  HADAL_ASSIGN_OR_RETURN(const auto backend, make_backend("cpu", "", pool));
  HADAL_ASSIGN_OR_RETURN(const Numerics numerics, numerics_from_string(arguments.numerics));
  HADAL_ASSIGN_OR_RETURN(const auto checks,
                         check_host(config, arguments.check_host, numerics, *backend, pool));
  Json rows = Json::array();
  std::string text =
      fmt::format("{:>9} {:<8} {:>10} {:>10} {:>7}\n", "context", "phase", "measured", "planned", "");
  for (const HostCheck& c : checks) {
    const auto add = [&](const char* phase, double measured, double planned) {
      rows.push_back({{"context", c.context},
                      {"phase", phase},
                      {"tokens_per_s", measured},
                      {"planned_tokens_per_s", planned}});
      text += fmt::format("{:>9} {:<8} {:>10.2f} {:>10.2f} {:>7.3f}\n", c.context, phase, measured, planned,
                          planned / measured);
    };
    add("decode", c.decode, c.planned_decode);
    add("prefill", c.prefill, c.planned_prefill);
  }
  return write_stdout(arguments.json ? rows.dump(2) + "\n" : text);
}

Json prices_json(const TokenPrices& prices) {
  return {{"hit", prices.hit}, {"miss", prices.miss}, {"output", prices.output}};
}

Json model_json(const ModelPlan& plan) {
  Json out = {{"model", plan.name},
              {"parameters", plan.parameters.total},
              {"active_parameters", plan.parameters.active},
              {"weights_bytes", plan.weights_bytes},
              {"kv_bytes", plan.kv_bytes},
              {"hadal_kv_bytes", plan.hadal_kv_bytes},
              {"flops_per_token", plan.cost.flops()},
              {"fp8_equivalent_flops_per_token", plan.cost.fp8_equivalent_flops()},
              {"weight_bytes_per_token", plan.cost.weight_bytes()},
              {"state_bytes_per_token", plan.cost.state_bytes()}};
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    const ClassCost& c = plan.cost.classes[i];
    out["classes"][std::string(to_string(static_cast<OpClass>(i)))] = {
        {"arithmetic", to_string(c.arithmetic)},
        {"flops", c.flops},
        {"fp8_equivalent_flops", c.flops * fp8_equivalent(c.arithmetic)},
        {"weight_bytes", c.weight_bytes},
        {"state_bytes", c.state_bytes}};
  }
  return out;
}

Json forward_json(const ForwardEstimate& forward) {
  Json out = {{"tokens_per_s", forward.tokens_per_s},
              {"seconds", forward.seconds},
              {"communication_seconds", forward.communication_seconds},
              {"other_seconds", forward.other_seconds},
              {"distinct_experts", forward.distinct_experts},
              {"tokens_per_expert", forward.tokens_per_expert}};
  for (std::size_t i = 0; i < kOpClasses; ++i)
    out["class_seconds"][std::string(to_string(static_cast<OpClass>(i)))] = forward.class_seconds[i];
  return out;
}

Json machine_json(const MachinePlan& plan, double hit_rate) {
  Json out = {{"batch", plan.batch},
              {"most_sequences", plan.most_sequences},
              {"fits", plan.memory.fits()},
              {"device_bytes",
               {{"weights", plan.memory.weights},
                {"state", plan.memory.state},
                {"activations", plan.memory.activations},
                {"capacity", plan.memory.capacity}}},
              {"decode", forward_json(plan.decode)},
              {"prefill", forward_json(plan.prefill)},
              {"prompt_tokens_per_s", plan.prompt_tokens_per_s},
              {"usd_per_million_tokens", nullptr},
              {"usd_per_million_prompt_tokens", nullptr}};
  if (plan.prices.output > 0) {  // else the profile knows neither price nor power
    out["usd_per_million_tokens"] = prices_json(plan.prices);
    out["usd_per_million_prompt_tokens"] = plan.prices.input(hit_rate);
  }
  return out;
}

Json curve_json(const std::vector<CurvePoint>& curve) {
  Json out = Json::array();
  for (const CurvePoint& p : curve) {
    out.push_back({{"context", p.context},
                   {"flops", p.flops},
                   {"fp8_equivalent_flops", p.fp8_equivalent_flops},
                   {"kv_bytes", p.kv_bytes}});
  }
  return out;
}

Json history_json() {
  Json out = Json::array();
  for (const PriceRecord& record : price_history()) {
    out.push_back({{"from", record.from},
                   {"flash", prices_json(record.flash)},
                   {"pro", prices_json(record.pro)},
                   {"note", record.note}});
  }
  return out;
}

Json as_json(const PlanReport& report, const PlanRequest& request) {
  Json out = model_json(report.model);
  out["context"] = request.context;
  out["curve"] = curve_json(report.curve);
  if (report.against) {
    const ModelPlan& other = *report.against;
    out["against"] = model_json(other);
    out["against"]["curve"] = curve_json(report.against_curve);
    out["flops_ratio"] = report.model.cost.fp8_equivalent_flops() / other.cost.fp8_equivalent_flops();
    out["plain_flops_ratio"] = report.model.cost.flops() / other.cost.flops();
    out["kv_ratio"] = report.model.kv_bytes / other.kv_bytes;
  }
  out["hardware"] = Json::parse(profile_to_json(report.hardware));
  out["hit_rate"] = request.hit_rate;
  out["economics"] = {{"years", request.economics.years},
                      {"usd_per_kwh", request.economics.usd_per_kwh},
                      {"utilisation", request.economics.utilisation}};
  out.update(machine_json(report.machine, request.hit_rate));
  if (report.against_machine) out["against"].update(machine_json(*report.against_machine, request.hit_rate));
  out["deepseek_usd_per_million_tokens"] = history_json();
  return out;
}

// Text ---------------------------------------------------------------------------------------------------

class Lines {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// 4096 -> 4K, 1048576 -> 1M
std::string short_tokens(std::int64_t n) {
  if (n % (1 << 20) == 0) return fmt::format("{}M", n >> 20);
  return n % 1024 == 0 ? fmt::format("{}K", n >> 10) : fmt::format("{}", n);
}

void add_model(Lines& out, const ModelPlan& plan, std::int64_t context) {
  const TokenCost& cost = plan.cost;
  out.add("{}: {:.2f} B parameters, {:.2f} B active; weights {}B", plan.name,
          static_cast<double>(plan.parameters.total) / 1e9, static_cast<double>(plan.parameters.active) / 1e9,
          readable(plan.weights_bytes));
  out.add(
      "one token at a context of {}: {:.1f} GFLOP, {:.1f} in FP8 operations; reads {}B of weights and {}B of "
      "state; a sequence keeps {:.3f} GB (hadal's own state: {:.3f} GB)",
      short_tokens(context), cost.flops() / 1e9, cost.fp8_equivalent_flops() / 1e9,
      readable(cost.weight_bytes()), readable(cost.state_bytes()), plan.kv_bytes / 1e9,
      plan.hadal_kv_bytes / 1e9);
  out.add("  {:<17} {:<10} {:>10} {:>7} {:>12} {:>12} {:>12}", "ops", "arithmetic", "GFLOP", "share",
          "FP8 GFLOP", "weights MB", "state MB");
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    const ClassCost& c = cost.classes[i];
    if (c.flops == 0) continue;
    out.add("  {:<17} {:<10} {:>10.2f} {:>6.1f}% {:>12.2f} {:>12.1f} {:>12.1f}",
            to_string(static_cast<OpClass>(i)), to_string(c.arithmetic), c.flops / 1e9,
            100 * c.flops / cost.flops(), c.flops * fp8_equivalent(c.arithmetic) / 1e9, c.weight_bytes / 1e6,
            c.state_bytes / 1e6);
  }
}

void add_curve(Lines& out, const PlanReport& report) {
  if (!report.against) {
    out.add("\n  {:>8} {:>12} {:>10}", "context", "FP8 TFLOP", "KV GB");
    for (const CurvePoint& p : report.curve)
      out.add("  {:>8} {:>12.3f} {:>10.3f}", short_tokens(p.context), p.fp8_equivalent_flops / 1e12,
              p.kv_bytes / 1e9);
    return;
  }
  out.add("\n  {:>8} {:>12} {:>12} {:>7} {:>10} {:>10} {:>8}", "context", "FP8 TFLOP", report.against->name,
          "", "KV GB", report.against->name, "");
  for (std::size_t i = 0; i < report.curve.size(); ++i) {
    const CurvePoint &p = report.curve[i], &q = report.against_curve[i];
    out.add("  {:>8} {:>12.3f} {:>12.3f} {:>6.1f}% {:>10.3f} {:>10.3f} {:>7.2f}%", short_tokens(p.context),
            p.fp8_equivalent_flops / 1e12, q.fp8_equivalent_flops / 1e12,
            100 * p.fp8_equivalent_flops / q.fp8_equivalent_flops, p.kv_bytes / 1e9, q.kv_bytes / 1e9,
            100 * p.kv_bytes / q.kv_bytes);
  }
}

void add_machine(Lines& out, const std::string& name, const MachinePlan& plan,
                 const HardwareProfile& hardware, const PlanRequest& request) {
  const DeviceMemory& memory = plan.memory;
  out.add("\n{} on {}", name, hardware.title);
  out.add(
      "  memory      {:.1f} GB of weights + {:.1f} of state + {:.1f} of activations = {:.1f} of {:.1f} GB "
      "{}: {}",
      memory.weights / 1e9, memory.state / 1e9, memory.activations / 1e9, memory.used() / 1e9,
      memory.capacity / 1e9, hardware.devices > 1 ? "a device" : "", memory.fits() ? "fits" : "DOES NOT FIT");
  out.add("              at most {} sequences of {} tokens", plan.most_sequences,
          short_tokens(request.context));
  const auto forward = [&](const char* label, const ForwardEstimate& f, const std::string& what) {
    std::size_t longest = 0;
    for (std::size_t i = 1; i < kOpClasses; ++i) {
      if (f.class_seconds[i] > f.class_seconds[longest]) longest = i;
    }
    out.add(
        "  {:<11} {:.1f} tokens/s ({:.1f} a device): {}, {:.2f} ms; most in {} ({:.0f}%), {:.0f}% between "
        "devices; a layer meets {:.1f} experts, {:.1f} tokens each",
        label, f.tokens_per_s, f.tokens_per_s / static_cast<double>(hardware.devices), what, 1e3 * f.seconds,
        to_string(static_cast<OpClass>(longest)), 100 * f.class_seconds[longest] / f.seconds,
        100 * f.communication_seconds / f.seconds, f.distinct_experts, f.tokens_per_expert);
  };
  forward("decode", plan.decode, fmt::format("{} sequences a step", plan.batch));
  forward("prefill", plan.prefill,
          fmt::format("{} tokens of a prompt a device at {}", std::min(request.chunk, request.context),
                      short_tokens(request.context)));
  out.add("              {:.1f} tokens/s over a whole prompt", plan.prompt_tokens_per_s);
  if (plan.prices.output == 0) {
    out.add("  USD per million tokens: not known, watts and price_usd of the profile are 0");
    return;
  }
  out.add("  USD per million tokens: hit {:.4f}, miss {:.4f}, output {:.4f}; prompts at {:.0f}% hits {:.4f}",
          plan.prices.hit, plan.prices.miss, plan.prices.output, 100 * request.hit_rate,
          plan.prices.input(request.hit_rate));
}

std::string as_text(const PlanReport& report, const PlanRequest& request) {
  Lines out;
  add_model(out, report.model, request.context);
  if (report.against) {
    out.add("");
    add_model(out, *report.against, request.context);
    out.add("\n{} against {} at {}: {:.1f}% of the FLOPs ({:.1f}% counted plainly), {:.2f}% of the cache",
            report.model.name, report.against->name, short_tokens(request.context),
            100 * report.model.cost.fp8_equivalent_flops() / report.against->cost.fp8_equivalent_flops(),
            100 * report.model.cost.flops() / report.against->cost.flops(),
            100 * report.model.kv_bytes / report.against->kv_bytes);
  }
  add_curve(out, report);
  add_machine(out, report.model.name, report.machine, report.hardware, request);
  if (report.against_machine)
    add_machine(out, report.against->name, *report.against_machine, report.hardware, request);
  out.add("  ({:g} years, {:g} USD a kWh, busy {:.0f}% of the time, {:.0f} W and {:.0f} USD a device)",
          request.economics.years, request.economics.usd_per_kwh, 100 * request.economics.utilisation,
          report.hardware.watts, report.hardware.price_usd);
  out.add("\nDeepSeek's API, USD per million tokens (hit / miss / output)");
  for (const PriceRecord& r : price_history()) {
    out.add("  from {}   Flash {:g} / {:g} / {:g}   Pro {:g} / {:g} / {:g}{}{}", r.from, r.flash.hit,
            r.flash.miss, r.flash.output, r.pro.hit, r.pro.miss, r.pro.output, r.note.empty() ? "" : "   ",
            r.note);
  }
  out.add("\n{}: {}", report.hardware.name, report.hardware.source);
  return out.text();
}

std::vector<CurvePoint> figure_points(const CostModel& model) {
  std::vector<CurvePoint> points;
  constexpr std::int64_t kSteps = 64;
  for (std::int64_t i = 1; i <= kSteps; ++i) points.push_back(curve_point(model, (i << 20) / kSteps));
  return points;
}

Status plan(const PlanArguments& arguments) {
  const PlanRequest& request = arguments.request;
  HADAL_ASSIGN_OR_RETURN(const Config config, planned_config(arguments));
  const CostModel model(config);
  std::optional<CostModel> other;
  PlanReport report;
  const std::string name = arguments.preset.empty() ? arguments.model : arguments.preset;
  report.model = plan_model(name, model, request.context);
  for (const std::int64_t context : kTableContexts) report.curve.push_back(curve_point(model, context));
  if (!arguments.against.empty()) {
    HADAL_ASSIGN_OR_RETURN(const Config baseline, preset_config(arguments.against));
    other.emplace(baseline);
    report.against = plan_model(arguments.against, *other, request.context);
    for (const std::int64_t context : kTableContexts)
      report.against_curve.push_back(curve_point(*other, context));
  }
  HADAL_ASSIGN_OR_RETURN(report.hardware, chosen_hardware(arguments, config));
  report.machine = plan_machine(model, report.hardware, request);
  if (other) report.against_machine = plan_machine(*other, report.hardware, request);
  if (!arguments.save_hardware.empty())
    HADAL_RETURN_IF_ERROR(write_file(arguments.save_hardware, profile_to_json(report.hardware)));
  const std::string text = as_text(report, request);
  if (!arguments.html.empty()) {
    std::vector<Curve> curves = {{report.model.name, figure_points(model)}};
    if (other) curves.push_back({report.against->name, figure_points(*other)});
    const std::string title = fmt::format("{} at {} tokens{}", name, short_tokens(request.context),
                                          other ? " against " + report.against->name : "");
    HADAL_RETURN_IF_ERROR(write_file(arguments.html, html_report(title, text, curves)));
  }
  return write_stdout(arguments.json ? as_json(report, request).dump(2) + "\n" : text);
}

}  // namespace

void register_plan(CLI::App& app, Outcome& outcome) {
  const auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command =
      app.add_subcommand("plan", "Say what a model costs: memory, FLOPs, attainable speed, USD per token");
  CLI::Option_group* source = command->add_option_group("what");
  source->add_option("MODEL,-m,--model", arguments->model, "A model directory; only its config is read")
      ->type_name("DIR");
  source->add_option("--preset", arguments->preset, "A published model: flash, pro or v3.2")
      ->check(CLI::IsMember({"flash", "pro", "v3.2"}));
  source->require_option(1);
  command->add_option("--layers", arguments->layers, "Only the first so many layers")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--experts", arguments->experts, "Only so many routed experts")
      ->check(CLI::NonNegativeNumber);
  PlanRequest& request = arguments->request;
  command->add_option("--context", request.context, "Tokens of a sequence; 64K is 65536")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32))
      ->default_str("128K");
  command->add_option("--batch", request.batch, "Sequences that decode together; by default as many as fit")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 24));
  command->add_option("--chunk", request.chunk, "Prompt tokens per forward")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--hit-rate", request.hit_rate, "Share of prompt tokens that are cached")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_option(
          "--hardware", arguments->hardware,
          fmt::format("{}, host (this machine, measured), or a JSON file", fmt::join(profile_names(), ", ")))
      ->type_name("NAME or FILE")
      ->capture_default_str();
  command
      ->add_option("--save-hardware", arguments->save_hardware, "Write the profile that was used to a file")
      ->type_name("FILE");
  command
      ->add_option("--check-host", arguments->check_host,
                   "Run layers of the model at these depths here, and compare with what is planned")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 21));
  command->add_option("--threads", arguments->threads, "With --hardware host: threads; 0 for all")
      ->envname("HADAL_THREADS")
      ->check(CLI::Range(0, 4096));
  command->add_option("--numerics", arguments->numerics, "With --hardware host: what it is measured in")
      ->check(CLI::IsMember({"exact", "qsim", "official", "int8"}))
      ->capture_default_str();
  command->add_option("--against", arguments->against, "Another published model to compare with: v3.2")
      ->check(CLI::IsMember({"flash", "pro", "v3.2"}));
  command->add_option("--years", request.economics.years, "That a machine is written off over")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command->add_option("--usd-per-kwh", request.economics.usd_per_kwh, "Price of electricity")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command
      ->add_option("--utilisation", request.economics.utilisation, "Share of the time that a machine is busy")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  command->add_option("--html", arguments->html, "Also write a report with the curves drawn")
      ->type_name("FILE");
  command->add_flag("--json", arguments->json, "One JSON object on stdout");
  command->footer("Example: hadal plan --preset pro --context 1M --against v3.2 --hardware h200x8");
  command->callback([arguments, &outcome] {
    const Status status = arguments->check_host.empty() ? plan(*arguments) : check(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });
}

}  // namespace hadal::cli
