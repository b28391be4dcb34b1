// The HTML report of hadal plan: the figures of the text report, and the two curves of the technical report's
// figure 1 (FLOPs and cache against the context) drawn as SVG. One file that needs nothing else.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace hadal {

struct Curve {
  std::string name;
  std::vector<CurvePoint> points;  // contexts ascending
};

// `text` is the report as it is printed; the first curve is the model that is planned.
std::string html_report(const std::string& title, const std::string& text, std::span<const Curve> curves);

}  // namespace hadal
