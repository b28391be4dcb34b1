// What a sequence carries between forwards (architecture.md section 9): per block the last window rows, the
// tokens of the not yet complete block of each compressor, and the compressed rows so far.
//
// Compressed rows lie in pages of 128 tokens (a multiple of every compression ratio), one page holding the
// rows of all blocks, shared between sequences by reference and copied when one of them writes. The rest
// has a fixed size whatever the length. At a page boundary no compressor has an incomplete block, so a copy
// of the fixed part there, with the pages before it by reference, is all that a rewind needs.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <hadal/error.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "model/config.h"
#include "ops/ops.h"

namespace hadal {

inline constexpr std::int64_t kPageTokens = 128;

// What the rows of a state are kept as.
enum class StateFormat : std::uint8_t {
  f32,      // float32, for any numerics
  compact,  // as the published deployment keeps them: FP8 with BF16 rope entries, the indexer's in FP4
};
std::string_view to_string(StateFormat format);
Result<StateFormat> state_format_from_string(std::string_view name);
// `name`, or if it is empty the best that holds the rows: compact where their quantisation is simulated.
// Errors: invalid_argument for another name, and for compact rows that nothing has quantised.
Result<StateFormat> choose_state_format(std::string_view name, bool quantised_rows);

// The tokens of a compressor's unfinished block and, with overlap, of the block before it: at a length of t
// tokens there are rows(t) of them, oldest first. Offsets are bytes into the fixed part.
struct TailLayout {
  std::int64_t ratio = 0;
  bool overlap = false;
  std::int64_t wide = 0;    // channels of a token: o * c'
  std::int64_t values = 0;  // [capacity, wide] floats
  std::int64_t gates = 0;   // [capacity, wide] floats, position bias added

  std::int64_t capacity() const { return overlap ? 2 * ratio - 1 : ratio - 1; }
  std::int64_t rows(std::int64_t length) const { return CompressSegment::kept(length, ratio, overlap); }
};

// Rows of one kind (attention or index) of one block within a page.
struct RowsLayout {
  std::int64_t offset = 0;  // bytes into the page
  std::int64_t per_page = 0;
  RowShape shape;
};

struct BlockStateLayout {
  AttentionKind kind = AttentionKind::sliding;
  std::int64_t window = 0;  // w rows at this byte of the fixed part, a ring: position p is row p % w
  TailLayout tail, index_tail;
  RowsLayout rows, index_rows;
};

struct StateLayout {
  explicit StateLayout(const Config& config, StateFormat format = StateFormat::f32);

  StateFormat format;
  std::vector<BlockStateLayout> blocks;
  std::int64_t window_rows = 0;   // w
  RowShape row;                   // window and compressed rows
  std::int64_t fixed_bytes = 0;   // of a sequence, whatever its length
  std::int64_t page_bytes = 0;    // of kPageTokens tokens
  std::uint64_t fingerprint = 0;  // of everything above and the config's shapes; guards saved states
  // Pages of this layout that exist, each counted once however many states share it.
  std::shared_ptr<std::atomic<std::int64_t>> live_pages = std::make_shared<std::atomic<std::int64_t>>(0);

  std::int64_t bytes(std::int64_t tokens) const {
    return fixed_bytes + (tokens + kPageTokens - 1) / kPageTokens * page_bytes;
  }
};

// kPageTokens tokens' rows of all blocks, zero when made. Counts itself in StateLayout::live_pages.
class Page {
 public:
  Page(const StateLayout& layout, Memory& memory)
      : Page(layout, MemoryBlock::zeros(static_cast<std::size_t>(layout.page_bytes), memory)) {}
  Page(const StateLayout& layout, MemoryBlock bytes) : bytes_(std::move(bytes)), live_(layout.live_pages) {
    ++*live_;
  }
  Page(const Page& other) : bytes_(other.bytes_.clone()), live_(other.live_) { ++*live_; }
  Page& operator=(const Page&) = delete;
  ~Page() { --*live_; }

  std::byte* data() { return bytes_.data(); }
  const MemoryBlock& block() const { return bytes_; }
  // On the host.
  std::span<const std::byte> bytes() const { return bytes_.span(); }
  std::span<std::byte> bytes() { return bytes_.span(); }

 private:
  MemoryBlock bytes_;
  std::shared_ptr<std::atomic<std::int64_t>> live_;
};

class SequenceState {
 public:
  // `layout` must outlive the state.
  explicit SequenceState(const StateLayout& layout);
  SequenceState(SequenceState&&) = default;
  SequenceState& operator=(SequenceState&&) = default;

  // An independent continuation from here: pages by reference, the fixed part copied.
  SequenceState fork() const;

  std::int64_t length() const { return length_; }          // tokens of the main model
  std::int64_t mtp_length() const { return mtp_length_; }  // positions of the MTP block

  // Remembers this point, which must be a page boundary, so that truncate can come back to it. Costs
  // fixed_bytes; kept until a truncate to before it.
  void keep_checkpoint();
  // Back to `length`: 0, the present length, or a kept checkpoint. Errors: invalid_argument, naming the
  // nearest one.
  Status truncate(std::int64_t length);
  std::vector<std::int64_t> checkpoints() const;

  // The whole state as a file, and back; what continues is bitwise the same. Checkpoints are not saved.
  // Errors of load: io, corrupt (truncated, checksum), invalid_argument (another model, state format or
  // numerics).
  Status save(const std::filesystem::path& path, std::uint64_t numerics_tag) const;
  static Result<SequenceState> load(const StateLayout& layout, const std::filesystem::path& path,
                                    std::uint64_t numerics_tag);

  // As if `length` tokens had been read, with random rows: for timing at depths that nobody wants to prefill.
  void fill_synthetic(std::int64_t length, std::uint64_t seed);

  std::int64_t resident_bytes() const;  // pages shared with others counted in full

  // For a state whose pages are whole but whose fixed part is not. Goes back so far that reading the same
  // tokens again makes the fixed part what it was: a layer's window rows are right once the layer below is
  // right for a window's length, so windows x layers tokens are enough (the report, 3.5.1). Rows that are in
  // pages already stay as they are, and forwards attend to them.
  void begin_replay();
  bool replaying() const { return replay_until_ > 0; }  // the fixed part is not right yet

  // The parts, for who keeps states elsewhere (engine/disk_cache.h). To fill a state from its parts:
  // prepare_append(n) and advance(n) on an empty one, then write fixed_part() and every page().
  std::span<const std::byte> fixed_part() const { return fixed_.span(); }
  std::span<std::byte> fixed_part() { return fixed_.span(); }
  std::size_t page_count() const { return pages_.size(); }
  std::span<const std::byte> page(std::size_t i) const { return std::as_const(*pages_[i]).bytes(); }
  std::span<std::byte> page(std::size_t i) { return pages_[i]->bytes(); }

  // For the forward. ---------------------------------------------------------------------------------
  const StateLayout& layout() const { return *layout_; }
  std::byte* fixed(std::int64_t offset) { return fixed_.data() + offset; }
  float* fixed_floats(std::int64_t offset) { return reinterpret_cast<float*>(fixed(offset)); }
  // Makes the pages of positions [length, length + count) exist and belong to this sequence alone.
  void prepare_append(std::int64_t count);
  // A state lives where its forwards run: a new one on the host, until a forward on a device takes it there.
  void move_to(Memory& memory);
  // The rows of a block in the page that has its row `i`, and that prepare_append covered.
  std::byte* page(const RowsLayout& rows, std::int64_t i) const {
    return page_data_[static_cast<std::size_t>(i / rows.per_page)] + rows.offset;
  }
  // Whether row `i` of a block is to be stored when a forward has made it: not if it is there from before a
  // replay.
  bool wants(const RowsLayout& rows, std::int64_t i) const {
    return i >= replay_until_ * rows.per_page / kPageTokens;
  }
  PagedRows paged_rows(const RowsLayout& rows) const {
    return {page_data_.data(), rows.offset, rows.per_page, rows.shape};
  }
  void advance(std::int64_t count) {
    length_ += count;
    if (length_ >= replay_until_) replay_until_ = 0;
  }
  // The fixed part, to go back to when a forward fails before advance(): rows that it left in pages lie
  // behind the length, where the next forward writes them again.
  void copy_fixed(Buffer<std::byte>& to) const;
  void restore_fixed(const Buffer<std::byte>& from);
  void advance_mtp(std::int64_t count) { mtp_length_ += count; }

 private:
  using Bytes = MemoryBlock;
  struct Checkpoint {
    Bytes fixed;
    std::int64_t mtp_length = 0;
  };

  SequenceState(const StateLayout& layout, Memory& memory);
  SequenceState(const StateLayout& layout, Memory& memory, Bytes fixed);

  const StateLayout* layout_;
  Memory* memory_;
  std::int64_t length_ = 0;
  std::int64_t mtp_length_ = 0;
  std::int64_t replay_until_ = 0;  // rows of whole blocks before this token are not stored again
  Bytes fixed_;
  std::vector<std::shared_ptr<Page>> pages_;
  std::vector<std::byte*> page_data_;  // pages_[i]->data()
  std::map<std::int64_t, std::shared_ptr<const Checkpoint>> checkpoints_;
};

}  // namespace hadal
