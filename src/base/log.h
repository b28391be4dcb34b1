// Notices to the user (a skipped drafter, a fallback), passed to whoever may need to say something.
#pragma once

#include <functional>
#include <string_view>

namespace hadal {

// Called with one line without its newline. An empty function says nothing.
using Notice = std::function<void(std::string_view)>;

}  // namespace hadal
