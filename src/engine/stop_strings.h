// Stop strings in a stream of text: what may still become one is held back, what comes before one is let
// through, the string itself never is.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hadal {

class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> strings = {});

  // Takes more text, returns what can be shown now. Once stopped() everything is dropped.
  std::string push(std::string_view text);
  // The end of the text: what was held back.
  std::string flush();
  bool stopped() const { return stopped_; }
  const std::string& matched() const { return matched_; }  // once stopped()

 private:
  std::vector<std::string> strings_;
  std::string held_;
  std::string matched_;
  bool stopped_ = false;
};

}  // namespace hadal
