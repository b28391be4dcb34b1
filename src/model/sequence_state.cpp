#include "model/sequence_state.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/check.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "base/rng.h"
#include "base/slab_memory.h"

namespace hadal {
namespace {

// The head of a saved state. Little-endian; the fixed part and the pages follow as they lie in memory, then
// the xxh64 of everything before it (docs/sequence_state.md).
struct FileHeader {
  char magic[8] = {'H', 'A', 'D', 'A', 'L', 'S', 'E', 'Q'};
  std::uint64_t version = 2;
  std::uint64_t fingerprint = 0;
  std::uint64_t format = 0;
  std::uint64_t numerics = 0;
  std::int64_t length = 0;
  std::int64_t mtp_length = 0;
  std::int64_t pages = 0;
};

// Parts of pages and of the fixed part begin where a cache line does.
std::int64_t aligned(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// Random words, eight bytes each, from a seed that the counter-based generator gives: SplitMix64 (Steele,
// Lea, Flood: Fast splittable pseudorandom number generators; OOPSLA 2014). A million tokens are gigabytes.
class Words {
 public:
  explicit Words(const std::array<std::uint32_t, 4>& seed) : state_(std::uint64_t{seed[0]} << 32 | seed[1]) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  // n bytes of words with the bits of `keep`, and those of `set` besides.
  void fill(std::byte* to, std::int64_t n, std::uint64_t keep, std::uint64_t set) {
    for (std::int64_t i = 0; i < n; i += 8) {
      const std::uint64_t word = (next() & keep) | set;
      std::memcpy(to + i, &word, static_cast<std::size_t>(std::min<std::int64_t>(8, n - i)));
    }
  }

 private:
  std::uint64_t state_;
};

// Floats in +-[0.5, 1), BF16 numbers likewise, E4M3 codes of magnitude below 2, any E2M1 codes, scales of 1.
constexpr std::uint64_t kFloatBits = 0x807fffff807fffff, kHalves = 0x3f0000003f000000;
constexpr std::uint64_t kBf16Bits = 0x807f807f807f807f, kBf16Halves = 0x3f003f003f003f00;
constexpr std::uint64_t kE4m3Bits = 0xbfbfbfbfbfbfbfbf, kOnes = 0x7f7f7f7f7f7f7f7f;
constexpr std::uint64_t kFloatOnes = 0x3f8000003f800000;

void fill_rows(const RowShape& shape, std::int64_t n, std::byte* rows, Words& words) {
  switch (shape.format) {
    case RowFormat::f32:
      words.fill(rows, n * shape.bytes(), kFloatBits, kHalves);
      break;
    case RowFormat::fp8_bf16:
      for (std::byte* row = rows; row < rows + n * shape.bytes(); row += shape.bytes()) {
        words.fill(row, shape.codes(), kE4m3Bits, 0);
        words.fill(row + shape.scales_at(), shape.codes() / 64, 0, kOnes);
        words.fill(row + shape.rope_at(), 2 * shape.rope_dim, kBf16Bits, kBf16Halves);
      }
      break;
    case RowFormat::fp8_f32:
      for (std::byte* row = rows; row < rows + n * shape.bytes(); row += shape.bytes()) {
        words.fill(row, shape.codes(), kE4m3Bits, 0);
        words.fill(row + shape.scales_at(), shape.codes() / 32, 0, kFloatOnes);
        words.fill(row + shape.rope_at(), 2 * shape.rope_dim, kBf16Bits, kBf16Halves);
      }
      break;
    case RowFormat::fp4_tiles:
      for (std::byte* tile = rows; tile < rows + n * shape.bytes(); tile += shape.tile_bytes()) {
        const std::int64_t codes = kTileRows * shape.dim / 2;
        words.fill(tile, codes, ~std::uint64_t{0}, 0);
        words.fill(tile + codes, shape.tile_bytes() - codes, 0, kOnes);
      }
      break;
  }
}

}  // namespace

std::string_view to_string(StateFormat format) {
  return format == StateFormat::compact ? "compact" : "f32";
}

Result<StateFormat> state_format_from_string(std::string_view name) {
  for (const auto format : {StateFormat::f32, StateFormat::compact}) {
    if (name == to_string(format)) return format;
  }
  return fail(ErrorCode::invalid_argument, fmt::format("state format '{}': there are f32 and compact", name));
}

Result<StateFormat> choose_state_format(std::string_view name, bool quantised_rows) {
  if (name.empty()) return quantised_rows ? StateFormat::compact : StateFormat::f32;
  HADAL_ASSIGN_OR_RETURN(const StateFormat format, state_format_from_string(name));
  if (format == StateFormat::compact && !quantised_rows) {
    return fail(ErrorCode::invalid_argument,
                "the compact state holds quantised rows, which exact numerics do not make; use f32 or other "
                "numerics");
  }
  return format;
}

StateLayout::StateLayout(const Config& config, StateFormat wanted)
    : format(wanted), window_rows(config.sliding_window) {
  const bool compact = format == StateFormat::compact;
  const RowFormat narrow = config.v32 ? RowFormat::fp8_f32 : RowFormat::fp8_bf16;
  const RowFormat index_narrow = config.v32 ? RowFormat::fp8_f32 : RowFormat::fp4_tiles;
  row = {compact ? narrow : RowFormat::f32, config.head_dim, config.qk_rope_head_dim};
  const RowShape index_row = {compact ? index_narrow : RowFormat::f32, config.index_head_dim, 0};

  const auto take = [](std::int64_t& used, std::int64_t bytes) {
    const std::int64_t offset = used;
    used = aligned(used + bytes);
    return offset;
  };
  const auto tail = [&](std::int64_t ratio, std::int64_t dim) {
    TailLayout layout;
    layout.ratio = ratio;
    layout.overlap = ratio == 4;
    layout.wide = (layout.overlap ? 2 : 1) * dim;
    layout.values = take(fixed_bytes, 4 * layout.capacity() * layout.wide);
    layout.gates = take(fixed_bytes, 4 * layout.capacity() * layout.wide);
    return layout;
  };
  const auto rows = [&](std::int64_t ratio, const RowShape& shape) {
    const std::int64_t per_page = kPageTokens / ratio;
    return RowsLayout{take(page_bytes, per_page * shape.bytes()), per_page, shape};
  };
  for (std::int64_t b = 0; b < config.num_blocks(); ++b) {
    BlockStateLayout block;
    block.kind = config.attention_kind(b);
    block.window = take(fixed_bytes, window_rows * row.bytes());
    const std::int64_t ratio = config.compress_ratio(b);
    const bool indexed = block.kind == AttentionKind::csa || block.kind == AttentionKind::dsa;
    const bool compresses = ratio > 1;
    if (compresses) block.tail = tail(ratio, config.head_dim);
    if (ratio > 0) block.rows = rows(ratio, row);
    if (indexed && compresses) block.index_tail = tail(ratio, config.index_head_dim);
    if (indexed) block.index_rows = rows(ratio, index_row);
    blocks.push_back(block);
  }
  std::vector<std::int64_t> shape = {static_cast<std::int64_t>(format),
                                     config.hidden_size,
                                     config.vocab_size,
                                     window_rows,
                                     config.head_dim,
                                     config.qk_rope_head_dim,
                                     fixed_bytes,
                                     config.index_head_dim,
                                     config.index_topk,
                                     page_bytes};
  shape.insert(shape.end(), config.compress_ratios.begin(), config.compress_ratios.end());
  fingerprint = XXH64(shape.data(), shape.size() * sizeof(shape[0]), 0);
}

SequenceState::SequenceState(const StateLayout& layout) : SequenceState(layout, slab_memory()) {}

SequenceState::SequenceState(const StateLayout& layout, Memory& memory)
    : SequenceState(layout, memory, Bytes::zeros(static_cast<std::size_t>(layout.fixed_bytes), memory)) {}

SequenceState::SequenceState(const StateLayout& layout, Memory& memory, Bytes fixed)
    : layout_(&layout), memory_(&memory), fixed_(std::move(fixed)) {}

SequenceState SequenceState::fork() const {
  SequenceState copy(*layout_, *memory_, fixed_.clone());
  copy.length_ = length_;
  copy.mtp_length_ = mtp_length_;
  copy.replay_until_ = replay_until_;
  copy.pages_ = pages_;
  copy.page_data_ = page_data_;
  copy.checkpoints_ = checkpoints_;
  return copy;
}

void SequenceState::prepare_append(std::int64_t count) {
  if (count == 0 || layout_->page_bytes == 0) return;
  const auto first = static_cast<std::size_t>(length_ / kPageTokens);
  const auto last = static_cast<std::size_t>((length_ + count - 1) / kPageTokens);
  for (std::size_t i = first; i <= last; ++i) {
    if (i == pages_.size()) {
      pages_.push_back(std::make_shared<Page>(*layout_, *memory_));
      page_data_.push_back(pages_.back()->data());
    } else if (pages_[i].use_count() > 1) {
      pages_[i] = std::make_shared<Page>(*pages_[i]);
      page_data_[i] = pages_[i]->data();
    }
  }
}

void SequenceState::move_to(Memory& memory) {
  if (memory_ == &memory || (memory_->on_host() && memory.on_host())) return;
  std::vector<std::byte> through;
  const auto moved = [&](const Bytes& from) {
    through.resize(from.size());
    from.read(through.data());
    Bytes to = Bytes::uninitialised(from.size(), memory);
    to.write(through.data());
    return to;
  };
  fixed_ = moved(fixed_);
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    pages_[i] = std::make_shared<Page>(*layout_, moved(pages_[i]->block()));
    page_data_[i] = pages_[i]->data();
  }
  for (auto& [length, checkpoint] : checkpoints_) {
    auto copy = std::make_shared<Checkpoint>();
    copy->fixed = moved(checkpoint->fixed);
    copy->mtp_length = checkpoint->mtp_length;
    checkpoint = std::move(copy);
  }
  memory_ = &memory;
}

void SequenceState::begin_replay() {
  const std::int64_t enough = layout_->window_rows * static_cast<std::int64_t>(layout_->blocks.size());
  replay_until_ = length_;
  length_ = std::max<std::int64_t>(0, length_ - enough) / kPageTokens * kPageTokens;
  mtp_length_ = 0;
  fixed_ = Bytes::zeros(fixed_.size(), *memory_);
}

void SequenceState::copy_fixed(Buffer<std::byte>& to) const {
  if (to.size() != fixed_.size()) to = Buffer<std::byte>::uninitialised(fixed_.size());
  fixed_.read(to.data());
}

void SequenceState::restore_fixed(const Buffer<std::byte>& from) {
  HADAL_CHECK(from.size() == fixed_.size());
  fixed_.write(from.data());
}

void SequenceState::keep_checkpoint() {
  HADAL_CHECK(length_ % kPageTokens == 0);
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->fixed = fixed_.clone();
  checkpoint->mtp_length = mtp_length_;
  checkpoints_[length_] = std::move(checkpoint);
}

std::vector<std::int64_t> SequenceState::checkpoints() const {
  std::vector<std::int64_t> lengths;
  for (const auto& [length, checkpoint] : checkpoints_) lengths.push_back(length);
  return lengths;
}

Status SequenceState::truncate(std::int64_t length) {
  if (length == length_) return {};
  const auto kept = checkpoints_.find(length);
  if (length != 0 && (length > length_ || kept == checkpoints_.end())) {
    std::int64_t nearest = 0;
    for (const auto& [at, checkpoint] : checkpoints_) {
      if (at <= length) nearest = at;
    }
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("cannot truncate a sequence of {} tokens to {}: the nearest kept point before it is {}",
                    length_, length, nearest));
  }
  if (length == 0) {
    *this = SequenceState(*layout_, *memory_);
    return {};
  }
  fixed_ = kept->second->fixed.clone();
  mtp_length_ = kept->second->mtp_length;
  length_ = length;
  const auto pages = static_cast<std::size_t>(length / kPageTokens);
  if (pages_.size() > pages) {
    pages_.resize(pages);
    page_data_.resize(pages);
  }
  checkpoints_.erase(std::next(kept), checkpoints_.end());
  return {};
}

void SequenceState::fill_synthetic(std::int64_t length, std::uint64_t seed) {
  *this = SequenceState(*layout_);
  const Philox random(seed, 0);
  Words words(random.block(0));
  for (const BlockStateLayout& block : layout_->blocks) {
    fill_rows(layout_->row, layout_->window_rows, fixed(block.window), words);
    for (const TailLayout* tail : {&block.tail, &block.index_tail}) {
      const std::int64_t bytes = tail->ratio == 0 ? 0 : 4 * tail->capacity() * tail->wide;
      words.fill(fixed(tail->values), bytes, kFloatBits, kHalves);
      words.fill(fixed(tail->gates), bytes, kFloatBits, kHalves);
    }
  }
  prepare_append(length);
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    Words page_words(random.block(1 + i));
    for (const BlockStateLayout& block : layout_->blocks) {
      for (const RowsLayout* rows : {&block.rows, &block.index_rows})
        fill_rows(rows->shape, rows->per_page, page_data_[i] + rows->offset, page_words);
    }
  }
  length_ = length;
}

std::int64_t SequenceState::resident_bytes() const {
  return layout_->fixed_bytes * (1 + static_cast<std::int64_t>(checkpoints_.size())) +
         layout_->page_bytes * static_cast<std::int64_t>(pages_.size());
}

Status SequenceState::save(const std::filesystem::path& path, std::uint64_t numerics_tag) const {
  HADAL_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::create(path));
  FileHeader header;
  header.fingerprint = layout_->fingerprint;
  header.format = static_cast<std::uint64_t>(layout_->format);
  header.numerics = numerics_tag;
  header.length = length_;
  header.mtp_length = mtp_length_;
  header.pages = static_cast<std::int64_t>(pages_.size());
  std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> hash(XXH64_createState(), &XXH64_freeState);
  XXH64_reset(hash.get(), 0);
  const auto put = [&](std::span<const std::byte> bytes) -> Status {
    XXH64_update(hash.get(), bytes.data(), bytes.size());
    return writer.write(bytes);
  };
  HADAL_RETURN_IF_ERROR(put(std::as_bytes(std::span(&header, 1))));
  std::vector<std::byte> bytes;
  const auto put_block = [&](const Bytes& block) -> Status {
    bytes.resize(block.size());
    block.read(bytes.data());
    return put(bytes);
  };
  HADAL_RETURN_IF_ERROR(put_block(fixed_));
  for (const auto& page : pages_) HADAL_RETURN_IF_ERROR(put_block(page->block()));
  const std::uint64_t checksum = XXH64_digest(hash.get());
  HADAL_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(&checksum, 1))));
  return writer.commit();
}

Result<SequenceState> SequenceState::load(const StateLayout& layout, const std::filesystem::path& path,
                                          std::uint64_t numerics_tag) {
  HADAL_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  const auto bad = [&](ErrorCode code, const char* what) {
    return fail(code, fmt::format("{}: {}; it cannot be continued here", path.string(), what));
  };
  FileHeader header;
  const FileHeader expected;
  if (bytes.size() < sizeof(header) + sizeof(std::uint64_t))
    return bad(ErrorCode::corrupt, "too short for a saved sequence");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0 ||
      header.version != expected.version) {
    return bad(ErrorCode::corrupt, "not a saved sequence of this version");
  }
  if (header.format != static_cast<std::uint64_t>(layout.format)) {
    return bad(ErrorCode::invalid_argument, layout.format == StateFormat::f32
                                                ? "saved in another state format than f32"
                                                : "saved in another state format than compact");
  }
  if (header.fingerprint != layout.fingerprint)
    return bad(ErrorCode::invalid_argument, "saved with a model of other shapes");
  if (header.numerics != numerics_tag) return bad(ErrorCode::invalid_argument, "saved with other numerics");
  const std::int64_t pages = layout.page_bytes == 0 ? 0 : (header.length + kPageTokens - 1) / kPageTokens;
  constexpr std::int64_t kMaxLength = std::int64_t{1} << 40;
  if (header.length < 0 || header.length > kMaxLength || header.pages != pages || header.mtp_length < 0 ||
      header.mtp_length > header.length) {
    return bad(ErrorCode::corrupt, "contradictory lengths");
  }
  const std::size_t body =
      sizeof(header) + static_cast<std::size_t>(layout.fixed_bytes + pages * layout.page_bytes);
  if (bytes.size() != body + sizeof(std::uint64_t)) return bad(ErrorCode::corrupt, "truncated or too long");
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, bytes.data() + body, sizeof(checksum));
  if (checksum != XXH64(bytes.data(), body, 0)) return bad(ErrorCode::corrupt, "the checksum does not match");

  SequenceState state(layout);
  const std::byte* at = bytes.data() + sizeof(header);
  const auto get = [&](std::span<std::byte> to) {
    if (to.empty()) return;
    std::memcpy(to.data(), at, to.size());
    at += to.size();
  };
  get(state.fixed_.span());
  state.prepare_append(header.length);
  for (auto& page : state.pages_) get(page->bytes());
  state.length_ = header.length;
  state.mtp_length_ = header.mtp_length;
  return state;
}

}  // namespace hadal
