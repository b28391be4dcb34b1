#include "plan/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iterator>

#include <fmt/format.h>

namespace hadal {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += c;
    }
  }
  return out;
}

constexpr std::array<const char*, 4> kColours = {"#1f5fbf", "#c2410c", "#15803d", "#7c3aed"};
constexpr double kWidth = 460, kHeight = 300, kLeft = 58, kRight = 12, kTop = 34, kBottom = 40;

// 1, 2 or 5 times a power of ten, so that at most six of them reach `top`.
double tick_step(double top) {
  const double power = std::pow(10, std::floor(std::log10(top / 6)));
  for (const double step : {power, 2 * power, 5 * power}) {
    if (top / step <= 6) return step;
  }
  return 10 * power;
}

// One chart, both axes linear as in the report's figure. `unit` divides the values.
std::string chart(const std::string& title, std::span<const Curve> curves, double unit,
                  const std::function<double(const CurvePoint&)>& value) {
  double top = 0, last = 0;
  for (const Curve& curve : curves) {
    for (const CurvePoint& p : curve.points) {
      top = std::max(top, value(p) / unit);
      last = std::max(last, static_cast<double>(p.context));
    }
  }
  top = top > 0 ? top * 1.05 : 1;
  const auto x = [&](double context) { return kLeft + context / last * (kWidth - kLeft - kRight); };
  const auto y = [&](double v) { return kHeight - kBottom - v / top * (kHeight - kTop - kBottom); };
  std::string svg = fmt::format(
      "<svg viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" aria-label=\"{2}\">\n"
      "<text x=\"{3}\" y=\"18\" class=\"title\">{2}</text>\n",
      kWidth, kHeight, escaped(title), kLeft);
  auto out = std::back_inserter(svg);
  for (double tick = 0; tick <= top; tick += tick_step(top)) {
    fmt::format_to(out,
                   "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" class=\"grid\"/>"
                   "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
                   kLeft, kWidth - kRight, y(tick), y(tick), kLeft - 6, y(tick) + 4, tick);
  }
  for (int quarter = 0; quarter <= 4; ++quarter) {
    const double at = last * quarter / 4;
    fmt::format_to(out, "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:g}K</text>\n", x(at),
                   kHeight - kBottom + 18, at / 1024);
  }
  fmt::format_to(out, "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">context, tokens</text>\n",
                 kWidth - kRight, kHeight - 6);
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const char* colour = kColours.at(i % kColours.size());
    std::string points;
    for (const CurvePoint& p : curves[i].points)
      points += fmt::format("{:.1f},{:.1f} ", x(static_cast<double>(p.context)), y(value(p) / unit));
    const CurvePoint& end = curves[i].points.back();
    fmt::format_to(out,
                   "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n"
                   "<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"{}\">{} {:.4g}</text>\n",
                   points, colour, kLeft + 10, kTop + 14 + 16 * static_cast<double>(i), colour,
                   escaped(curves[i].name), value(end) / unit);
  }
  return svg + "</svg>\n";
}

}  // namespace

std::string html_report(const std::string& title, const std::string& text, std::span<const Curve> curves) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{0}</title>\n<style>\n"
      "body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }}\n"
      "pre {{ font-size: 13px; overflow-x: auto; background: #f6f6f4; padding: 1em; }}\n"
      "svg {{ font: 12px system-ui, sans-serif; margin-right: 1em; }}\n"
      ".grid {{ stroke: #ddd; }} .title {{ font-weight: 600; }}\n"
      "</style></head>\n<body>\n<h1>{0}</h1>\n",
      escaped(title));
  html += chart("FLOPs of one token, FP8 equivalent (T)", curves, 1e12,
                [](const CurvePoint& p) { return p.fp8_equivalent_flops; });
  html += chart("Cache of one sequence (GB)", curves, 1e9, [](const CurvePoint& p) { return p.kv_bytes; });
  html += fmt::format("<pre>{}</pre>\n</body>\n</html>\n", escaped(text));
  return html;
}

}  // namespace hadal
