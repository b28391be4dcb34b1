#include "engine/stop_strings.h"

#include <gtest/gtest.h>

namespace hadal {
namespace {

// What is shown when `text` comes in two pieces cut at `cut`.
std::string shown(const std::vector<std::string>& stops, const std::string& text, std::size_t cut,
                  bool* stopped) {
  StopStrings matcher(stops);
  std::string out = matcher.push(text.substr(0, cut));
  out += matcher.push(text.substr(cut));
  out += matcher.flush();
  *stopped = matcher.stopped();
  return out;
}

TEST(StopStrings, EverySplitGivesTheSame) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, expected;
    bool stopped;
  };
  for (const Case& c : std::vector<Case>{
           {{"STOP"}, "one STOP two", "one ", true},
           {{"STOP"}, "one STO", "one STO", false},
           {{"aab"}, "aaab", "a", true},         // the match begins inside a failed one
           {{"abc", "bc"}, "xabcd", "x", true},  // the earlier one wins, though the other ends with it
           {{"\n\n", "\nEnd"}, "a\nEnd b", "a", true},
           {{""}, "text", "text", false},
           {{}, "text", "text", false},
           {{"🙂"}, "a🙂b", "a", true},
       }) {
    for (std::size_t cut = 0; cut <= c.text.size(); ++cut) {
      bool stopped = false;
      EXPECT_EQ(shown(c.stops, c.text, cut, &stopped), c.expected) << c.text << " cut at " << cut;
      EXPECT_EQ(stopped, c.stopped);
    }
  }
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings matcher({"</think>"});
  EXPECT_EQ(matcher.push("abc<"), "abc");
  EXPECT_EQ(matcher.push("b>"), "<b>");
  EXPECT_EQ(matcher.push("</thi"), "");
  EXPECT_EQ(matcher.flush(), "</thi");
}

}  // namespace
}  // namespace hadal
