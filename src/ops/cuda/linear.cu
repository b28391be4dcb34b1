// Linear maps: FP8, FP4 and BF16 weights on the matrix units, others in float32.
#include <algorithm>

#include "ops/cuda/linear.h"
#include "ops/cuda/mma_rows.cuh"
#include "ops/cuda/mma_tiles.cuh"

namespace hadal::cuda {
namespace {

struct PackArgs {
  const float* x;
  std::uint16_t* out;
  std::int64_t rows, dim, plane;
  int kind, rounded, parts, tiles;  // Kind; for mma_tiles.cuh
};

// A warp per block of 128, four entries a thread, to where the weights' fragments meet them: for mma_rows.cuh
// in the order in which a thread reads, for mma_tiles.cuh in that of the instruction's columns.
__global__ void pack_kernel(PackArgs p) {
  const std::int64_t blocks = p.dim / kDepth;
  const std::int64_t unit = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (unit >= p.rows * blocks) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t begin = unit / blocks * p.dim + unit % blocks * kDepth;
  const float4 loaded = *reinterpret_cast<const float4*>(p.x + begin + 4 * lane);
  float v[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  if (p.rounded != 0) {
    const float amax = warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
    const float factor = e8m0(e4m3_scale(amax));
#pragma unroll
    for (float& x : v) x = e4m3(to_e4m3(x / factor)) * factor;
  }
  // The instruction, and the thread of four, that these entries are for.
  const auto kind = static_cast<Kind>(p.kind);
  const int step = kind == Kind::fp8   ? lane / 16 * 4 + lane % 4
                   : kind == Kind::fp4 ? lane % 8 / 2 * 2 + lane % 2
                                       : lane / 8 * 2 + lane % 2;
  const int q = kind == Kind::fp8 ? lane / 4 % 4 : kind == Kind::fp4 ? lane / 8 : lane % 8 / 2;
  for (int part = 0; part < p.parts; ++part) {
    float own[4], other[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      own[i] = round_bf16(v[i]);
      v[i] -= own[i];
      other[i] = __shfl_xor_sync(kAll, own[i], 1);
    }
    std::uint32_t b0, b1;
    if (kind == Kind::fp8) {
      b0 = pack_bf16(own[0], own[2]);
      b1 = pack_bf16(own[1], own[3]);
    } else if (kind == Kind::fp4) {  // pairs (i, i + 4) of eight
      b0 = lane % 2 == 0 ? pack_bf16(own[0], other[0]) : pack_bf16(other[2], own[2]);
      b1 = lane % 2 == 0 ? pack_bf16(own[1], other[1]) : pack_bf16(other[3], own[3]);
    } else {
      b0 = pack_bf16(own[0], own[1]);
      b1 = pack_bf16(own[2], own[3]);
    }
    std::uint16_t* to = p.out + part * p.plane + begin;
    if (p.tiles != 0) {
      *reinterpret_cast<std::uint32_t*>(to + 16 * step + 2 * q) = b0;
      *reinterpret_cast<std::uint32_t*>(to + 16 * step + 8 + 2 * q) = b1;
    } else {
      *reinterpret_cast<uint2*>(to + 4 * lane) = {b0, b1};
    }
  }
}

struct LinearArgs {
  WeightPointers w;
  PackedInput in;
  float* y;
  std::int64_t depth, out;
  int n_tokens, groups, rows;  // rows of a group
  int kept_rounds;             // RowShared
};

template <int kTiles>
struct FewTokens {
  static constexpr int kMatrices = 1;
  const LinearArgs& p;
  int row_tiles;  // of a group

  __device__ RowItem<1> item(int i) const {
    if (i < row_tiles) return {{p.w}, i * 16, p.rows, 0, min(8 * kTiles, p.n_tokens)};
    const int tile = i % row_tiles, rest = i / row_tiles, group = rest % p.groups;
    const int first = rest / p.groups * 8 * kTiles;
    return {
        {p.w}, group * p.rows + tile * 16, (group + 1) * p.rows, first, min(8 * kTiles, p.n_tokens - first)};
  }
  __device__ const std::uint16_t* input(const RowItem<1>& item, int column) const {
    const std::uint16_t* x = p.in.x + (item.first + column) * p.in.stride;
    return p.groups == 1 ? x : x + item.row / p.rows * p.depth;
  }
  __device__ std::int64_t in() const { return p.depth; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void warm() const {
    if (p.groups == 1 && p.n_tokens <= 2) touch(p.in.x, p.n_tokens * p.depth * 2);
  }
  __device__ void store(const RowItem<1>& item, int column, int row, const float (&sums)[1]) const {
    p.y[(item.first + column) * p.out + row] = sums[0];
  }
};

template <Kind kind, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads, row_blocks(kParts, kTiles)) rows_kernel(LinearArgs p) {
  const int row_tiles = (p.rows + 15) / 16;
  const int count = row_tiles * p.groups * ((p.n_tokens + 8 * kTiles - 1) / (8 * kTiles));
  multiply_rows<kind, kParts, kTiles>(FewTokens<kTiles>{p, row_tiles}, static_cast<int>(blockIdx.x),
                                      static_cast<int>(gridDim.x), count, p.kept_rounds);
}

template <int kTileTokens>
struct ManyTokens {
  static constexpr int kTokens = kTileTokens;
  const LinearArgs& p;
  int row_tiles;

  __device__ TileItem item(int i) const {
    const int tile = i % row_tiles, rest = i / row_tiles, group = rest % p.groups;
    const int row = group * p.rows + tile * 2 * kTileRows64, first = rest / p.groups * kTokens;
    return {
        {p.w, p.w}, {row, row + kTileRows64}, (group + 1) * p.rows, first, min(kTokens, p.n_tokens - first)};
  }
  __device__ const std::uint16_t* input(const TileItem& item, int column) const {
    return p.in.x + (item.first + column) * p.in.stride + item.row[0] / p.rows * p.depth;
  }
  __device__ const void* any() const { return p.in.x; }
  __device__ std::int64_t in() const { return p.depth; }
  __device__ std::int64_t plane() const { return p.in.plane; }
  __device__ void store(const TileItem& item, const float (&sums)[kTokens / 2], float*) const {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarp;
    const int row = item.row[0] + tid / kWarp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + lane % 4 * 2 + i % 2, r = row + i / 2 * 8;
        if (column < item.columns && r < item.end) p.y[(item.first + column) * p.out + r] = sums[4 * n + i];
      }
    }
  }
};

template <Kind kind, int kParts, int kTokens>
__global__ void __launch_bounds__(kTileThreads, 1) tiles_kernel(LinearArgs p) {
  multiply_tile<kind, kParts>(ManyTokens<kTokens>{p, (p.rows + 127) / 128}, static_cast<int>(blockIdx.x));
}

// Of a tile.
int tile_tokens(std::int64_t n_tokens) {
  return n_tokens <= 64 ? 64 : 128;
}

template <Kind kind, int kParts>
void launch_linear(Recorder& r, LinearArgs args, bool in_tiles, const Range& in, const Range& out) {
  if (in_tiles) {
    const int tokens = tile_tokens(args.n_tokens);
    const int tiles = (args.rows + 127) / 128 * args.groups * ((args.n_tokens + tokens - 1) / tokens);
    r.launch(tokens == 64 ? tiles_kernel<kind, kParts, 64> : tiles_kernel<kind, kParts, 128>,
             dim3(static_cast<unsigned>(tiles)), kTileThreads, tile_shared_bytes(kParts, tokens), args, {in},
             {out});
    return;
  }
  const auto launch = [&](auto kernel, int tiles) {
    const RowShared shared = row_shared(args.depth, tiles, 1);
    args.kept_rounds = shared.rounds;
    const std::int64_t items =
        std::int64_t{(args.rows + 15) / 16} * args.groups * ((args.n_tokens + 8 * tiles - 1) / (8 * tiles));
    const std::int64_t blocks = std::min<std::int64_t>(items, kMultiprocessors * row_blocks(kParts, tiles));
    r.launch(kernel, dim3(static_cast<unsigned>(blocks)), kRowThreads, shared.bytes, args, {in}, {out});
  };
  if (args.n_tokens <= 8) return launch(rows_kernel<kind, kParts, 1>, 1);
  if (args.n_tokens <= 16) return launch(rows_kernel<kind, kParts, 2>, 2);
  if (args.n_tokens <= 32) return launch(rows_kernel<kind, kParts, 4>, 4);
  launch(rows_kernel<kind, kParts, 8>, 8);
}

struct PlainArgs {
  DeviceLinear w;
  const float* x;
  float* y;
  std::int64_t n_tokens, rows_per_group, stride;
};

constexpr int kPlainTokens = 4;

// A warp per row and four tokens, any format: each lane sums every 32nd product.
__global__ void plain_kernel(PlainArgs p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= p.w.out) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t first = std::int64_t{blockIdx.y} * kPlainTokens;
  const float* x = p.x + row / p.rows_per_group * p.w.in;
  float sums[kPlainTokens] = {};
  for (std::int64_t k = lane; k < p.w.in; k += kWarp) {
    const float weight = weight_at(p.w, row, k);
#pragma unroll
    for (int i = 0; i < kPlainTokens; ++i) {
      if (first + i < p.n_tokens) sums[i] = fmaf(weight, x[(first + i) * p.stride + k], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPlainTokens; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && first + i < p.n_tokens) p.y[(first + i) * p.w.out + row] = sum;
  }
}

// Few long rows in float32, the mixers of mHC. `in` falls into pieces of 512, each summed by one warp (a lane
// has four entries of every 128), the pieces are added up in ascending order.
constexpr int kPiece = 512, kMixerRows = 8;

struct MixerArgs {
  const float* weight;
  const float* x;
  float* sums;  // [T, pieces, out]
  std::int64_t n_tokens, out, in;
};
template <int kTokens>
__global__ void mixer_kernel(MixerArgs p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first_row = std::int64_t{warp} * kMixerRows, first = std::int64_t{blockIdx.y} * kTokens;
  if (first_row >= p.out) return;
  const std::int64_t piece = blockIdx.x;
  float sums[kMixerRows][kTokens] = {};
#pragma unroll
  for (int step = 0; step < kPiece / (4 * kWarp); ++step) {
    const std::int64_t k = piece * kPiece + (step * kWarp + lane) * 4;
    float4 x[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      x[t] = *reinterpret_cast<const float4*>(p.x + min(first + t, p.n_tokens - 1) * p.in + k);
#pragma unroll
    for (int i = 0; i < kMixerRows; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(p.weight + min(first_row + i, p.out - 1) * p.in + k);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        sums[i][t] = fmaf(w.x, x[t].x, sums[i][t]);
        sums[i][t] = fmaf(w.y, x[t].y, sums[i][t]);
        sums[i][t] = fmaf(w.z, x[t].z, sums[i][t]);
        sums[i][t] = fmaf(w.w, x[t].w, sums[i][t]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMixerRows; ++i) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = warp_sum(sums[i][t]);
      if (lane == 0 && first + t < p.n_tokens && first_row + i < p.out)
        p.sums[((first + t) * gridDim.x + piece) * p.out + first_row + i] = sum;
    }
  }
}

struct AddPiecesArgs {
  const float* sums;
  float* y;
  std::int64_t count, out, pieces;
};
__global__ void add_pieces_kernel(AddPiecesArgs p) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= p.count) return;
  const float* from = p.sums + at / p.out * p.pieces * p.out + at % p.out;
  float sum = 0;
#pragma unroll 8
  for (std::int64_t piece = 0; piece < p.pieces; ++piece) sum += from[piece * p.out];
  p.y[at] = sum;
}

constexpr int kMostMixerRows = 4 * kMixerRows;

}  // namespace

bool multiplies(const Linear& w) {
  return w.in % kDepth == 0 && w.format != Linear::Format::f32 && w.format != Linear::Format::f16;
}

PackedInput pack(Recorder& r, const float* x, std::int64_t rows, std::int64_t dim, Linear::Format format,
                 bool rounded, bool in_tiles) {
  const Kind kind = kind_of(format);
  const int parts = rounded ? 1 : 3;
  const std::uint64_t key = static_cast<std::uint64_t>(kind) * 8 + (rounded ? 4 : 0) + (in_tiles ? 2 : 0);
  const Range source = range(x, rows * dim);
  if (const auto* known = r.find_derived(source, key, dim); known != nullptr)
    return {reinterpret_cast<const std::uint16_t*>(known->place.begin), rows * dim, dim};
  auto* out =
      reinterpret_cast<std::uint16_t*>(r.next_scratch(static_cast<std::size_t>(rows * dim * parts) * 2));
  const Range place = range(out, rows * dim * parts);
  const PackArgs args{
      x, out, rows, dim, rows * dim, static_cast<int>(kind), rounded ? 1 : 0, parts, in_tiles ? 1 : 0};
  r.launch(pack_kernel, dim3(static_cast<unsigned>((rows * (dim / kDepth) + 7) / 8)), 256, 0, args, {source},
           {place});
  r.add_derived({source, place, key, dim});
  return {out, rows * dim, dim};
}

void linear(Recorder& r, const LinearParams& p) {
  const Linear& w = *p.weight;
  const std::int64_t wide = p.groups * w.in, rows_per_group = w.out / p.groups;
  const bool rounded = p.rounding == InputRounding::e4m3 && w.quantised();
  const Range in = range(p.x, p.n_tokens * wide), out = range(p.y, p.n_tokens * w.out);
  if (multiplies(w)) {
    // Tiles where there are enough of them for the device. Both ways give the same bits.
    const std::int64_t tiles = (rows_per_group + 127) / 128 * p.groups * ((p.n_tokens + 127) / 128);
    const bool in_tiles = p.n_tokens > 32 && tiles >= 24;
    const PackedInput packed = pack(r, p.x, p.n_tokens, wide, w.format, rounded, in_tiles);
    const LinearArgs args{{reinterpret_cast<const std::uint8_t*>(w.weight), w.scale},
                          packed,
                          p.y,
                          w.in,
                          w.out,
                          static_cast<int>(p.n_tokens),
                          static_cast<int>(p.groups),
                          static_cast<int>(rows_per_group),
                          0};
    const Range packed_range = range(packed.x, packed.plane * (rounded ? 1 : 3));
    switch (kind_of(w.format)) {
      case Kind::fp8:
        return rounded ? launch_linear<Kind::fp8, 1>(r, args, in_tiles, packed_range, out)
                       : launch_linear<Kind::fp8, 3>(r, args, in_tiles, packed_range, out);
      case Kind::fp4:
        return rounded ? launch_linear<Kind::fp4, 1>(r, args, in_tiles, packed_range, out)
                       : launch_linear<Kind::fp4, 3>(r, args, in_tiles, packed_range, out);
      case Kind::bf16:
        return launch_linear<Kind::bf16, 3>(r, args, in_tiles, packed_range, out);
    }
  }
  if (w.format == Linear::Format::f32 && p.groups == 1 && w.out <= kMostMixerRows && w.in % kPiece == 0) {
    const std::int64_t pieces = w.in / kPiece;
    auto* sums = reinterpret_cast<float*>(
        r.next_scratch(static_cast<std::size_t>(p.n_tokens * pieces * w.out) * sizeof(float)));
    const Range sums_range = range(sums, p.n_tokens * pieces * w.out);
    const MixerArgs args{reinterpret_cast<const float*>(w.weight), p.x, sums, p.n_tokens, w.out, w.in};
    const auto launch = [&](auto kernel, std::int64_t tokens) {
      const dim3 grid(static_cast<unsigned>(pieces),
                      static_cast<unsigned>((p.n_tokens + tokens - 1) / tokens));
      r.launch(kernel, grid, 128, 0, args, {in}, {sums_range});
    };
    p.n_tokens < 4 ? launch(mixer_kernel<1>, 1) : launch(mixer_kernel<4>, 4);
    const std::int64_t count = p.n_tokens * w.out;
    r.launch(add_pieces_kernel, dim3(static_cast<unsigned>((count + 127) / 128)), 128, 0,
             AddPiecesArgs{sums, p.y, count, w.out, pieces}, {sums_range}, {out});
    return;
  }
  const dim3 grid(static_cast<unsigned>((w.out + 7) / 8),
                  static_cast<unsigned>((p.n_tokens + kPlainTokens - 1) / kPlainTokens));
  r.launch(plain_kernel, grid, 256, 0,
           PlainArgs{device_linear(w), p.x, p.y, p.n_tokens, rows_per_group, wide}, {in}, {out});
}

}  // namespace hadal::cuda
