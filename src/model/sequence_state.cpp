#include "model/sequence_state.h"

#include <cstring>
#include <span>

#include <fmt/format.h>
#include <xxhash.h>

#include "base/check.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "base/rng.h"

namespace hadal {
namespace {

// The head of a saved state. Little-endian; the fixed part and the pages follow as float32, then the xxh64
// of everything before it (docs/sequence_state.md).
struct FileHeader {
  char magic[8] = {'H', 'A', 'D', 'A', 'L', 'S', 'E', 'Q'};
  std::uint64_t version = 1;
  std::uint64_t fingerprint = 0;
  std::uint64_t numerics = 0;
  std::int64_t length = 0;
  std::int64_t mtp_length = 0;
  std::int64_t pages = 0;
};

}  // namespace

StateLayout::StateLayout(const Config& config)
    : window_rows(config.sliding_window), head_dim(config.head_dim) {
  const auto tail = [&](std::int64_t ratio, std::int64_t dim) {
    TailLayout layout;
    layout.ratio = ratio;
    layout.overlap = ratio == 4;
    layout.wide = (layout.overlap ? 2 : 1) * dim;
    layout.values = fixed_floats;
    layout.gates = layout.values + layout.capacity() * layout.wide;
    fixed_floats = layout.gates + layout.capacity() * layout.wide;
    return layout;
  };
  const auto rows = [&](std::int64_t ratio, std::int64_t dim) {
    const RowsLayout layout{page_floats, kPageTokens / ratio, dim};
    page_floats += layout.per_page * dim;
    return layout;
  };
  for (std::int64_t b = 0; b < config.num_blocks(); ++b) {
    BlockStateLayout block;
    block.kind = config.attention_kind(b);
    block.window = fixed_floats;
    fixed_floats += window_rows * head_dim;
    const std::int64_t ratio = config.compress_ratio(b);
    if (block.kind != AttentionKind::sliding) {
      block.tail = tail(ratio, head_dim);
      block.rows = rows(ratio, head_dim);
    }
    if (block.kind == AttentionKind::csa) {
      block.index_tail = tail(ratio, config.index_head_dim);
      block.index_rows = rows(ratio, config.index_head_dim);
    }
    blocks.push_back(block);
  }
  std::vector<std::int64_t> shape = {config.hidden_size, config.vocab_size, window_rows,
                                     head_dim,           fixed_floats,      config.index_head_dim,
                                     config.index_topk,  page_floats};
  shape.insert(shape.end(), config.compress_ratios.begin(), config.compress_ratios.end());
  fingerprint = XXH64(shape.data(), shape.size() * sizeof(shape[0]), 0);
}

SequenceState::SequenceState(const StateLayout& layout)
    : layout_(&layout), fixed_(static_cast<std::size_t>(layout.fixed_floats)) {}

SequenceState SequenceState::fork() const {
  SequenceState copy(*layout_);
  copy.length_ = length_;
  copy.mtp_length_ = mtp_length_;
  copy.fixed_ = fixed_.clone();
  copy.pages_ = pages_;
  copy.page_data_ = page_data_;
  copy.checkpoints_ = checkpoints_;
  return copy;
}

void SequenceState::prepare_append(std::int64_t count) {
  if (count == 0 || layout_->page_floats == 0) return;
  const auto first = static_cast<std::size_t>(length_ / kPageTokens);
  const auto last = static_cast<std::size_t>((length_ + count - 1) / kPageTokens);
  for (std::size_t i = first; i <= last; ++i) {
    if (i == pages_.size()) {
      pages_.push_back(std::make_shared<Buffer<float>>(static_cast<std::size_t>(layout_->page_floats)));
      page_data_.push_back(pages_.back()->data());
    } else if (pages_[i].use_count() > 1) {
      pages_[i] = std::make_shared<Buffer<float>>(pages_[i]->clone());
      page_data_[i] = pages_[i]->data();
    }
  }
}

void SequenceState::copy_fixed(Buffer<float>& to) const {
  if (to.size() != fixed_.size()) to = Buffer<float>::uninitialised(fixed_.size());
  std::memcpy(to.data(), fixed_.data(), 4 * fixed_.size());
}

void SequenceState::restore_fixed(const Buffer<float>& from) {
  HADAL_CHECK(from.size() == fixed_.size());
  std::memcpy(fixed_.data(), from.data(), 4 * fixed_.size());
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
    *this = SequenceState(*layout_);
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
  std::uint64_t counter = 0;
  const auto fill = [&](Buffer<float>& to) {
    // Uniform in [-1, 1), 16 bits each.
    for (std::size_t i = 0; i < to.size();) {
      for (const std::uint32_t word : random.block(counter++)) {
        for (const std::uint32_t half : {word & 0xffff, word >> 16}) {
          if (i < to.size()) to[i++] = static_cast<float>(half) * 0x1p-15F - 1.0F;
        }
      }
    }
  };
  fill(fixed_);
  prepare_append(length);
  for (auto& page : pages_) fill(*page);
  length_ = length;
}

std::int64_t SequenceState::resident_bytes() const {
  return 4 * (layout_->fixed_floats * (1 + static_cast<std::int64_t>(checkpoints_.size())) +
              layout_->page_floats * static_cast<std::int64_t>(pages_.size()));
}

Status SequenceState::save(const std::filesystem::path& path, std::uint64_t numerics_tag) const {
  HADAL_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::create(path));
  FileHeader header;
  header.fingerprint = layout_->fingerprint;
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
  HADAL_RETURN_IF_ERROR(put(std::as_bytes(fixed_.span())));
  for (const auto& page : pages_) HADAL_RETURN_IF_ERROR(put(std::as_bytes(std::as_const(*page).span())));
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
  if (header.fingerprint != layout.fingerprint)
    return bad(ErrorCode::invalid_argument, "saved with a model of other shapes");
  if (header.numerics != numerics_tag) return bad(ErrorCode::invalid_argument, "saved with other numerics");
  const std::int64_t pages = layout.page_floats == 0 ? 0 : (header.length + kPageTokens - 1) / kPageTokens;
  constexpr std::int64_t kMaxLength = std::int64_t{1} << 40;
  if (header.length < 0 || header.length > kMaxLength || header.pages != pages || header.mtp_length < 0 ||
      header.mtp_length > header.length) {
    return bad(ErrorCode::corrupt, "contradictory lengths");
  }
  const std::size_t body =
      sizeof(header) + 4 * static_cast<std::size_t>(layout.fixed_floats + pages * layout.page_floats);
  if (bytes.size() != body + sizeof(std::uint64_t)) return bad(ErrorCode::corrupt, "truncated or too long");
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, bytes.data() + body, sizeof(checksum));
  if (checksum != XXH64(bytes.data(), body, 0)) return bad(ErrorCode::corrupt, "the checksum does not match");

  SequenceState state(layout);
  const std::byte* at = bytes.data() + sizeof(header);
  const auto get = [&](Buffer<float>& to) {
    if (to.empty()) return;
    std::memcpy(to.data(), at, to.size() * sizeof(float));
    at += to.size() * sizeof(float);
  };
  get(state.fixed_);
  state.prepare_append(header.length);
  for (auto& page : state.pages_) get(*page);
  state.length_ = header.length;
  state.mtp_length_ = header.mtp_length;
  return state;
}

}  // namespace hadal
