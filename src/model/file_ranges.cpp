#include "model/file_ranges.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

constexpr std::uint64_t kMergeGap = std::uint64_t{64} << 10;

}  // namespace

FileLayout lay_out(std::span<const FilePiece> pieces, std::uint64_t most) {
  std::vector<std::size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(pieces[a].file, pieces[a].offset) < std::pair(pieces[b].file, pieces[b].offset);
  });
  FileLayout layout;
  layout.at.resize(pieces.size());
  for (const std::size_t i : order) {
    const FilePiece& piece = pieces[i];
    const bool joins = !layout.ranges.empty() && layout.ranges.back().file == piece.file &&
                       piece.offset < layout.ranges.back().end() + kMergeGap &&
                       piece.end() - layout.ranges.back().offset <= most;
    if (joins) {
      FileRange& last = layout.ranges.back();
      last.bytes = std::max(last.end(), piece.end()) - last.offset;
    } else {
      layout.ranges.push_back({piece.file, piece.offset, piece.bytes, layout.bytes});
    }
    const FileRange& range = layout.ranges.back();
    layout.at[i] = range.memory + range.offset % DirectFile::kBlock + (piece.offset - range.offset);
    layout.bytes = range.memory_end();
  }
  return layout;
}

}  // namespace hadal
