// Compressed rows: blocks of tokens pooled channel by channel, and the tails that wait for the next tokens.
#include <vector>

#include "ops/cuda/device.cuh"
#include "ops/cuda/ops.h"

namespace hadal::cuda {
namespace {

struct Shape {
  std::int64_t ratio, dim, wide;  // m, c', o * c'
};

// Where the values and gates of a segment's tokens are: first those that the state has kept, then the
// batch's, whose gates lack the position bias.
struct Source {
  const float *kept_values, *kept_gates;  // [kept, wide]
  const float *values, *gates;            // [.., wide], of the batch
  const float* bias;                      // [m, wide]; null: none is added
  std::int64_t kept, start;               // tokens kept, position of the batch's first

  __device__ float value(std::int64_t token, std::int64_t channel, std::int64_t wide) const {
    return token < kept ? kept_values[token * wide + channel] : values[(token - kept) * wide + channel];
  }
  __device__ float gate(std::int64_t token, std::int64_t channel, const Shape& shape) const {
    if (token < kept) return kept_gates[token * shape.wide + channel];
    const float gate = gates[(token - kept) * shape.wide + channel];
    if (bias == nullptr) return gate;
    return gate + bias[(start + token - kept) % shape.ratio * shape.wide + channel];
  }
};

// One channel of the block whose own tokens begin at `own` of the source.
__device__ float pool(const Source& from, const Shape& shape, std::int64_t own, bool previous,
                      std::int64_t channel) {
  const std::int64_t own_channel = channel + shape.wide - shape.dim;  // of the second half, with overlap
  float maximum = -INFINITY;
  if (previous) {
    for (std::int64_t t = own - shape.ratio; t < own; ++t)
      maximum = fmaxf(maximum, from.gate(t, channel, shape));
  }
  for (std::int64_t t = own; t < own + shape.ratio; ++t)
    maximum = fmaxf(maximum, from.gate(t, own_channel, shape));
  double weighted = 0, total = 0;
  const auto add = [&](std::int64_t t, std::int64_t c) {
    const double e = expf(from.gate(t, c, shape) - maximum);
    weighted += e * double{from.value(t, c, shape.wide)};
    total += e;
  };
  if (previous) {
    for (std::int64_t t = own - shape.ratio; t < own; ++t) add(t, channel);
  }
  for (std::int64_t t = own; t < own + shape.ratio; ++t) add(t, own_channel);
  return static_cast<float>(weighted / total);
}

struct CompressArgs {
  Source from;
  Shape shape;
  float* out;
  std::int64_t overlap;
};
__global__ void compress_kernel(CompressArgs p) {
  const std::int64_t b = blockIdx.x, channel = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (channel >= p.shape.dim) return;
  const std::int64_t own = p.from.kept + b * p.shape.ratio;
  p.out[b * p.shape.dim + channel] =
      pool(p.from, p.shape, own, p.overlap != 0 && own >= p.shape.ratio, channel);
}

// A segment, or a block that it completes.
struct Piece {
  std::int64_t begin, count, start, kept, own;
  float *values, *gates;
};

struct TokensArgs {
  const float *values, *gates, *bias;
  const Piece* pieces;
  float* out;
  Shape shape;
  std::int64_t overlap;
};
__device__ inline Source source_of(const TokensArgs& p, const Piece& piece) {
  return {piece.values,
          piece.gates,
          p.values + piece.begin * p.shape.wide,
          p.gates + piece.begin * p.shape.wide,
          p.bias,
          piece.kept,
          piece.start};
}
// A block of threads per completed block of tokens.
__global__ void pool_kernel(TokensArgs p) {
  const std::int64_t channel = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (channel >= p.shape.dim) return;
  const Piece piece = p.pieces[blockIdx.x];
  p.out[blockIdx.x * p.shape.dim + channel] =
      pool(source_of(p, piece), p.shape, piece.own, p.overlap != 0 && piece.own >= p.shape.ratio, channel);
}
// The tail behind the batch, oldest first: a thread moves one channel, so it reads each entry before anybody
// overwrites it.
__global__ void tail_kernel(TokensArgs p) {
  const std::int64_t channel = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (channel >= p.shape.wide) return;
  const Piece piece = p.pieces[blockIdx.x];
  const Source from = source_of(p, piece);
  const std::int64_t keep = piece.own, first = piece.kept + piece.count - keep;
  for (std::int64_t t = 0; t < keep; ++t) {
    const float value = from.value(first + t, channel, p.shape.wide),
                gate = from.gate(first + t, channel, p.shape);
    piece.values[t * p.shape.wide + channel] = value;
    piece.gates[t * p.shape.wide + channel] = gate;
  }
}

dim3 grid(std::size_t pieces, std::int64_t channels) {
  return {static_cast<unsigned>(pieces), static_cast<unsigned>((channels + 127) / 128)};
}

}  // namespace

void compress(Recorder& r, const CompressParams& p) {
  const std::int64_t wide = p.overlap ? 2 * p.dim : p.dim;
  const std::int64_t kept = p.has_previous ? p.ratio : 0;
  const CompressArgs args{
      {p.values, p.gates, p.values + kept * wide, p.gates + kept * wide, nullptr, kept, 0},
      {p.ratio, p.dim, wide},
      p.out,
      p.overlap ? 1 : 0};
  const std::int64_t tokens = kept + p.n_blocks * p.ratio;
  r.launch(compress_kernel, grid(static_cast<std::size_t>(p.n_blocks), p.dim), 128, 0, args,
           {range(p.values, tokens * wide), range(p.gates, tokens * wide)},
           {range(p.out, p.n_blocks * p.dim)});
}

void compress_tokens(Recorder& r, const CompressTokensParams& p) {
  const std::int64_t m = p.ratio, wide = p.overlap ? 2 * p.dim : p.dim;
  std::vector<Piece> tails, blocks;
  tails.reserve(p.segments.size());
  for (const CompressSegment& s : p.segments) {
    Piece piece{s.begin, s.count,  s.start, CompressSegment::kept(s.start, m, p.overlap),
                0,       s.values, s.gates};
    const std::int64_t first = s.start / m, last = (s.start + s.count) / m;
    for (std::int64_t b = first; b < last; ++b) {
      piece.own = b * m - s.start + piece.kept;
      blocks.push_back(piece);
    }
    piece.own = CompressSegment::kept(s.start + s.count, m, p.overlap);  // of a tail: how much is kept
    tails.push_back(piece);
  }
  const CompressSegment& last = p.segments.back();
  const Range values = range(p.values, (last.begin + last.count) * wide),
              gates = range(p.gates, (last.begin + last.count) * wide);
  // The tails of all sequences lie alike; that of the first stands for them.
  const Range tail_values = range(p.segments[0].values, wide), tail_gates = range(p.segments[0].gates, wide);
  TokensArgs args{p.values, p.gates, p.bias, nullptr, p.out, {m, p.dim, wide}, p.overlap ? 1 : 0};
  if (!blocks.empty()) {
    args.pieces = r.stage(std::span<const Piece>(blocks));
    r.launch(pool_kernel, grid(blocks.size(), p.dim), 128, 0, args, {values, gates, tail_values, tail_gates},
             {range(p.out, static_cast<std::int64_t>(blocks.size()) * p.dim)});
  }
  args.pieces = r.stage(std::span<const Piece>(tails));
  r.launch(tail_kernel, grid(tails.size(), wide), 128, 0, args, {values, gates}, {tail_values, tail_gates});
}

}  // namespace hadal::cuda
