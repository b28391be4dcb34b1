// The page of a run: every curve that its metrics hold, the recipe, and nothing that a browser would have to
// fetch.
#include "train/report.h"

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/run_directory.h"
#include "train/tiny_run.h"

namespace hadal {
namespace {

using testing::HasSubstr;
using testing::Not;

class ReportTest : public testing::Test {
 protected:
  void SetUp() override {
    test::write_tiny_corpus(directory_.path() / "data");
    std::ofstream(run() / "recipe.json") << test::tiny_recipe(directory_.path(), 30);
  }
  std::filesystem::path run() const { return directory_.path(); }
  void write_metrics(const std::string& text) const { std::ofstream(run() / "metrics.jsonl") << text; }

  test::RunDirectory directory_;
};

TEST_F(ReportTest, HoldsTheCurvesAndStandsAlone) {
  std::string lines;
  StepMetrics m;
  for (std::int64_t step = 0; step < 20; ++step) {
    m.plan.step = step;
    m.plan.sequences = 2;
    m.plan.length = 8;
    m.losses.ce = 4 - 0.1 * static_cast<double>(step);
    m.losses.mtp = m.losses.ce + 0.25;
    m.gradient_norm = 1;
    m.seconds = 0.5;
    if (step == 9) m.validation = m.losses;
    lines += to_json(m) + "\n";
  }
  write_metrics(lines + R"({"step": 20, "ce": 1.)");  // cut by a kill
  const auto html = training_report(run());
  ASSERT_TRUE(html.has_value()) << html.error().message();
  for (const char* title :
       {"Loss", "Learning rate", "Gradient norm", "Router load", "mHC", "Tokens per second"})
    EXPECT_THAT(*html, HasSubstr(std::string("<figcaption><b>") + title)) << title;
  EXPECT_THAT(*html, HasSubstr("next token: 2.1<"));
  EXPECT_THAT(*html, HasSubstr("held out: 3.1<"));
  EXPECT_THAT(*html, HasSubstr("<td>20 of 30</td>"));
  EXPECT_THAT(*html, HasSubstr("bias_update_speed"));
  for (const char* outside : {"http:", "https:", "<script", "src=", "nan", "inf,"})
    EXPECT_THAT(*html, Not(HasSubstr(outside))) << outside;
}

TEST_F(ReportTest, OneStepIsEnoughAndNoneIsNot) {
  write_metrics("");
  EXPECT_THAT(training_report(run()).error().message(), HasSubstr("no steps yet"));
  write_metrics(to_json({}) + "\n");
  EXPECT_TRUE(training_report(run()).has_value());
  EXPECT_EQ(training_report(run() / "nowhere").error().code(), ErrorCode::not_found);
}

}  // namespace
}  // namespace hadal
