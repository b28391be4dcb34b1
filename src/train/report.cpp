#include "train/report.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "train/recipe.h"

namespace hadal {
namespace {

using Json = nlohmann::ordered_json;

struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  // step, value
};
struct Plot {
  std::string title;
  std::vector<Curve> curves;
  bool logarithmic = false;
};

constexpr const char* kColours[] = {"#1f6feb", "#d1242f", "#1a7f37", "#8250df"};
constexpr double kWidth = 760, kHeight = 240, kLeft = 64, kRight = 12, kTop = 12, kBottom = 28;
constexpr std::size_t kMostPoints = 1500;  // of a curve: more than there are pixels

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

// 1, 2 or 5 times a power of ten, such that `range` has four to nine of them.
double tick_step(double range) {
  const double power = std::pow(10, std::floor(std::log10(range / 4)));
  for (const double factor : {5.0, 2.0}) {
    if (range / (factor * power) >= 4) return factor * power;
  }
  return power;
}

// Of many points the mean of each stretch.
std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& points) {
  if (points.size() <= kMostPoints) return points;
  std::vector<std::pair<double, double>> out;
  for (std::size_t i = 0; i < kMostPoints; ++i) {
    const std::size_t begin = i * points.size() / kMostPoints, end = (i + 1) * points.size() / kMostPoints;
    double x = 0, y = 0;
    for (std::size_t j = begin; j < end; ++j) {
      x += points[j].first;
      y += points[j].second;
    }
    const auto n = static_cast<double>(end - begin);
    out.emplace_back(x / n, y / n);
  }
  return out;
}

std::string svg(const Plot& plot) {
  double x0 = std::numeric_limits<double>::max(), x1 = 0, y0 = x0, y1 = -x0;
  const auto scaled = [&](double y) { return plot.logarithmic ? std::log10(std::max(y, 1e-12)) : y; };
  for (const Curve& curve : plot.curves) {
    for (const auto& [x, y] : curve.points) {
      x0 = std::min(x0, x);
      x1 = std::max(x1, x);
      y0 = std::min(y0, scaled(y));
      y1 = std::max(y1, scaled(y));
    }
  }
  if (x1 <= x0) x1 = x0 + 1;
  if (y1 - y0 < 1e-9) {
    y0 -= 0.5 * std::max(1e-6, std::fabs(y0) * 0.01);
    y1 += 0.5 * std::max(1e-6, std::fabs(y1) * 0.01);
  }
  const auto px = [&](double x) { return kLeft + (x - x0) / (x1 - x0) * (kWidth - kLeft - kRight); };
  const auto py = [&](double y) {
    return kHeight - kBottom - (y - y0) / (y1 - y0) * (kHeight - kTop - kBottom);
  };
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth,
                                kHeight, plot.title);
  const double y_step = tick_step(y1 - y0), x_step = tick_step(x1 - x0);
  for (double y = std::ceil(y0 / y_step) * y_step; y <= y1 + 1e-12; y += y_step) {
    const double value = plot.logarithmic ? std::pow(10, y) : std::fabs(y) < 1e-12 ? 0 : y;
    out += fmt::format(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1f}\" "
        "text-anchor=\"end\">{:.4g}</text>\n",
        kLeft, kWidth - kRight, py(y), py(y), kLeft - 6, py(y) + 4, value);
  }
  for (double x = std::ceil(x0 / x_step) * x_step; x <= x1 + 1e-9; x += x_step) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.6g}</text>\n", px(x),
                       kHeight - 8, x);
  }
  for (std::size_t i = 0; i < plot.curves.size(); ++i) {
    std::string path;
    for (const auto& [x, y] : thinned(plot.curves[i].points))
      fmt::format_to(std::back_inserter(path), "{:.1f},{:.1f} ", px(x), py(scaled(y)));
    out += fmt::format("<polyline points=\"{}\" style=\"stroke:{}\"/>\n", path,
                       kColours[i % std::size(kColours)]);
  }
  return out + "</svg>\n";
}

std::string figure(const Plot& plot) {
  std::string legend;
  for (std::size_t i = 0; i < plot.curves.size(); ++i) {
    const Curve& curve = plot.curves[i];
    legend += fmt::format("<span style=\"color:{}\">{}: {:.5g}</span> ", kColours[i % std::size(kColours)],
                          curve.name, curve.points.back().second);
  }
  return fmt::format("<figure><figcaption><b>{}</b> {}</figcaption>\n{}</figure>\n", plot.title, legend,
                     svg(plot));
}

constexpr std::string_view kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{0}</title><style>
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: 800px; margin: 2em auto; padding: 0 1em; color: #1f2328; background: #fff }}
figure {{ margin: 1.5em 0 }} figcaption span {{ margin-left: 1em }} svg {{ width: 100%; height: auto }}
polyline {{ fill: none; stroke-width: 1.5 }} svg text {{ font-size: 11px; fill: #59636e }} .grid {{ stroke: #d1d9e0 }}
table {{ border-collapse: collapse }} td {{ padding: .1em 1.5em .1em 0 }} pre {{ background: #f6f8fa; padding: 1em; overflow: auto }}
</style></head><body><h1>{0}</h1>
)";

}  // namespace

Result<std::string> training_report(const std::filesystem::path& run) {
  HADAL_ASSIGN_OR_RETURN(const TrainingRecipe recipe, load_recipe(run / "recipe.json"));
  HADAL_ASSIGN_OR_RETURN(const std::string text, read_file(run / "metrics.jsonl"));
  std::vector<Json> steps;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    Json line = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                            text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (line.is_object()) steps.push_back(std::move(line));  // a last line may be cut by a kill
    at = end + 1;
  }
  if (steps.empty())
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: no steps yet", (run / "metrics.jsonl").string()));

  const auto curve = [&](const char* name, auto&& value) {
    Curve out{name, {}};
    for (const Json& step : steps) {
      const Json found = value(step);
      if (found.is_number() && step.contains("step") && step["step"].is_number() &&
          std::isfinite(found.get<double>()))
        out.points.emplace_back(step["step"].get<double>() + 1, found.get<double>());
    }
    return out;
  };
  const auto field = [&](const char* name, const char* key) {
    return curve(name, [=](const Json& step) { return step.value(key, Json()); });
  };
  const auto of_pair = [&](const char* name, const char* key, std::size_t i) {
    return curve(name, [=](const Json& step) {
      const Json pair = step.value(key, Json());
      return pair.is_array() && pair.size() == 2 ? pair[i] : Json();
    });
  };
  const auto held_out = [&](const char* name, const char* key) {
    return curve(name, [=](const Json& step) {
      const Json losses = step.value("validation", Json());
      return losses.is_object() ? losses.value(key, Json()) : Json();
    });
  };
  std::vector<Plot> plots = {
      {"Loss (nats)",
       {field("next token", "ce"), field("MTP", "mtp"), held_out("held out", "ce"),
        held_out("held out, MTP", "mtp")}},
      {"Balance loss and the indexer's", {field("balance", "balance"), field("indexer KL", "index_kl")}},
      {"Learning rate", {field("learning rate", "learning_rate")}},
      {"Gradient norm", {field("norm", "gradient_norm")}, true},
      {"Router load (1 is even)",
       {field("fullest expert", "load_max"), field("emptiest expert", "load_min")}},
      {"mHC: sums of rows and columns",
       {of_pair("least row", "mixing_rows", 0), of_pair("most row", "mixing_rows", 1),
        of_pair("least column", "mixing_columns", 0), of_pair("most column", "mixing_columns", 1)}},
      {"Tokens per second", {field("tokens/s", "tokens_per_s")}},
      {"Seconds of a step", {field("forward and backward", "model_s"), field("optimizer", "optimizer_s")}},
  };
  std::string html = fmt::format(kHead, escaped(recipe.name));
  const Json& last = steps.back();
  html += fmt::format(
      "<table><tr><td>steps</td><td>{} of {}</td></tr><tr><td>tokens</td><td>{}</td></tr></table>\n",
      last.value("step", std::int64_t{0}) + 1, recipe.steps, last.value("tokens", std::int64_t{0}));
  for (Plot& plot : plots) {
    std::erase_if(plot.curves, [](const Curve& c) { return c.points.empty(); });
    if (!plot.curves.empty()) html += figure(plot);
  }
  return html + "<h2>Recipe</h2>\n<pre>" + escaped(recipe.to_json()) + "</pre>\n</body></html>\n";
}

}  // namespace hadal
