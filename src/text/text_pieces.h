// Where a long text may be cut so that its pieces, split into words on their own, give the words of the
// whole.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace hadal {

// The ends of pieces of about `wanted` bytes: each but the last behind a newline between two ASCII letters,
// where V4's patterns cut whatever stands around it.
std::vector<std::size_t> piece_ends(std::string_view text, std::size_t wanted);

}  // namespace hadal
