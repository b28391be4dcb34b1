#include "text/string_formats.h"

#include <algorithm>
#include <array>

namespace hadal {
namespace {

#define HADAL_DATE                                                \
  "[12][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])" \
  "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
#define HADAL_TIME \
  "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define HADAL_LABEL "[A-Za-z0-9]{1,15}(?:-[A-Za-z0-9]{1,15}){0,3}"  // 63 characters at most, no two hyphens
#define HADAL_BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"

struct Format {
  std::string_view name, regex;
};

constexpr std::array kFormats = {
    Format{"date", "^(?:" HADAL_DATE ")$"},
    Format{"time", "^(?:" HADAL_TIME ")$"},
    Format{"date-time", "^(?:" HADAL_DATE ")T(?:" HADAL_TIME ")$"},
    Format{"duration",
           "^P(?:[0-9]{1,4}W|[0-9]{1,4}D|(?:[0-9]{1,4}D)?T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?"
           "|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))$"},
    Format{"email", "^[A-Za-z0-9_+-]{1,15}(?:\\.[A-Za-z0-9_+-]{1,15}){0,3}@" HADAL_LABEL "(?:\\." HADAL_LABEL
                    "){0,1}\\.[A-Za-z]{2,12}$"},
    Format{"hostname", "^" HADAL_LABEL "(?:\\." HADAL_LABEL "){0,2}$"},
    Format{"ipv4", "^" HADAL_BYTE "(?:\\." HADAL_BYTE "){3}$"},
    Format{"ipv6", "^[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}$"},
    Format{"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
    Format{"uri", "^[a-z][a-z0-9+.-]{1,15}://" HADAL_LABEL "(?:\\." HADAL_LABEL
                  "){0,2}(?::[1-9][0-9]{0,3})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*"
                  "(?:\\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?(?:#[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?$"},
};

#undef HADAL_DATE
#undef HADAL_TIME
#undef HADAL_LABEL
#undef HADAL_BYTE

}  // namespace

std::optional<std::string_view> string_format(std::string_view name) {
  const auto* const found = std::find_if(kFormats.begin(), kFormats.end(),
                                         [&](const Format& format) { return format.name == name; });
  if (found == kFormats.end()) return std::nullopt;
  return found->regex;
}

}  // namespace hadal
