// Tensors on disk, gathered into few large reads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/direct_file.h"

namespace hadal {

// A tensor of a checkpoint's file.
struct FilePiece {
  std::size_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::string name;  // of the tensor, for errors

  std::uint64_t end() const { return offset + bytes; }
};

// What is read in one request.
struct FileRange {
  std::size_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t memory = 0;  // where the blocks around it begin, within the memory for all ranges

  std::uint64_t end() const { return offset + bytes; }
  std::uint64_t memory_end() const { return memory + DirectFile::footprint(offset, bytes); }
};

struct FileLayout {
  std::vector<FileRange> ranges;
  std::vector<std::uint64_t> at;  // of each piece, in the order given, within the memory
  std::uint64_t bytes = 0;        // of memory
};

// Pieces that lie closer together than 64 KB share a range, so that the tensors of one expert, which files
// keep side by side, come in one request: at 1 GB/s the gap costs less than the request it saves. No range is
// made longer than `most` by a merge.
FileLayout lay_out(std::span<const FilePiece> pieces, std::uint64_t most);

}  // namespace hadal
