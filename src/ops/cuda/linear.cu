// Linear maps: FP8, FP4 and BF16 weights on the matrix units, others in float32.
#include "ops/cuda/linear.h"
#include "ops/cuda/mma_rows.cuh"

namespace hadal::cuda {
namespace {

struct PackArgs {
  const float* x;
  std::uint16_t* out;
  std::int64_t rows, dim, plane;
  std::int64_t source_rows;        // row r of the output is row r % source_rows of x
  std::int64_t kind, kind_behind;  // of the weights that rows before and behind `boundary` meet
  std::int64_t boundary;
  int rounded, parts;
};

// A warp per block of 128: four entries a thread, to where mma_rows.cuh wants them.
__global__ void pack_kernel(PackArgs p) {
  const std::int64_t blocks = p.dim / kDepth;
  const std::int64_t unit = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (unit >= p.rows * blocks) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = unit / blocks, in_row = unit % blocks * kDepth + 4 * lane, at = row * p.dim + in_row;
  const float4 loaded = *reinterpret_cast<const float4*>(p.x + row % p.source_rows * p.dim + in_row);
  float v[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  if (p.rounded != 0) {
    const float amax = warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
    const float factor = e8m0(e4m3_scale(amax));
#pragma unroll
    for (float& x : v) x = e4m3(to_e4m3(x / factor)) * factor;
  }
  for (int part = 0; part < p.parts; ++part) {
    float own[4], other[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      own[i] = round_bf16(v[i]);
      v[i] -= own[i];
      other[i] = __shfl_xor_sync(kAll, own[i], 1);
    }
    uint2 to;
    switch (static_cast<Kind>(row < p.boundary ? p.kind : p.kind_behind)) {
      case Kind::fp8:
        to = {pack_bf16(own[0], own[2]), pack_bf16(own[1], own[3])};
        break;
      case Kind::fp4:  // 0 4 1 5 2 6 3 7
        to = lane % 2 == 0 ? uint2{pack_bf16(own[0], other[0]), pack_bf16(own[1], other[1])}
                           : uint2{pack_bf16(other[2], own[2]), pack_bf16(other[3], own[3])};
        break;
      default:
        to = {pack_bf16(own[0], own[1]), pack_bf16(own[2], own[3])};
    }
    *reinterpret_cast<uint2*>(p.out + part * p.plane + at) = to;
  }
}

struct LinearArgs {
  DeviceLinear w;
  PackedInput input;
  float* y;
  std::int64_t n_tokens, rows_per_group;
};

template <Kind kind, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads) linear_kernel(LinearArgs p) {
  const std::int64_t group = blockIdx.z, end = (group + 1) * p.rows_per_group;
  const std::int64_t row = group * p.rows_per_group + std::int64_t{blockIdx.x} * 16;
  const std::int64_t first = std::int64_t{blockIdx.y} * 8 * kTiles;
  PackedInput input = p.input;
  input.x += group * p.w.in;
  const DeviceLinear w[1] = {p.w};
  float out[1][(kTiles + 1) / 2];
  multiply_rows<kind, kParts, kTiles, 1>(
      w, row, end, input, [&](int column) { return first + column < p.n_tokens ? first + column : -1; }, out);
#pragma unroll
  for (int o = 0; o < (kTiles + 1) / 2; ++o) {
    const int at = static_cast<int>(threadIdx.x) + o * kRowThreads;
    const std::int64_t t = first + at / 16, r = row + at % 16;
    if (at < kTiles * 8 * 16 && t < p.n_tokens && r < end) p.y[t * p.w.out + r] = out[0][o];
  }
}

template <Kind kind, int kParts>
void launch_linear(Recorder& r, const LinearArgs& args, std::int64_t groups) {
  const auto launch = [&](auto kernel, int tiles) {
    const dim3 grid(static_cast<unsigned>((args.rows_per_group + 15) / 16),
                    static_cast<unsigned>((args.n_tokens + 8 * tiles - 1) / (8 * tiles)), static_cast<unsigned>(groups));
    r.launch(kernel, grid, kRowThreads, row_shared_bytes(tiles, 1), args);
  };
  if (args.n_tokens <= 8) return launch(linear_kernel<kind, kParts, 1>, 1);
  if (args.n_tokens <= 16) return launch(linear_kernel<kind, kParts, 2>, 2);
  if (args.n_tokens <= 32) return launch(linear_kernel<kind, kParts, 4>, 4);
  launch(linear_kernel<kind, kParts, 8>, 8);
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

// Few long rows in float32, the mixers of mHC. `in` falls into pieces of 1024, each summed by one warp (a lane
// has four entries of every 128), the pieces are added up in ascending order.
constexpr int kPiece = 1024, kMixerRows = 8, kMixerTokens = 4;

struct MixerArgs {
  const float* weight;
  const float* x;
  float* sums;  // [T, pieces, out]
  std::int64_t n_tokens, out, in;
};
__global__ void mixer_kernel(MixerArgs p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first_row = std::int64_t{warp} * kMixerRows, first = std::int64_t{blockIdx.y} * kMixerTokens;
  if (first_row >= p.out) return;
  const std::int64_t piece = blockIdx.x;
  float sums[kMixerRows][kMixerTokens] = {};
  for (int step = 0; step < kPiece / (4 * kWarp); ++step) {
    const std::int64_t k = piece * kPiece + (step * kWarp + lane) * 4;
    float4 x[kMixerTokens];
#pragma unroll
    for (int t = 0; t < kMixerTokens; ++t)
      x[t] = *reinterpret_cast<const float4*>(p.x + min(first + t, p.n_tokens - 1) * p.in + k);
#pragma unroll
    for (int i = 0; i < kMixerRows; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(p.weight + min(first_row + i, p.out - 1) * p.in + k);
#pragma unroll
      for (int t = 0; t < kMixerTokens; ++t) {
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
    for (int t = 0; t < kMixerTokens; ++t) {
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
  for (std::int64_t piece = 0; piece < p.pieces; ++piece) sum += from[piece * p.out];
  p.y[at] = sum;
}

constexpr int kMostMixerRows = 4 * kMixerRows;

Kind kind_of(Linear::Format format) {
  return format == Linear::Format::fp8 ? Kind::fp8 : format == Linear::Format::fp4 ? Kind::fp4 : Kind::bf16;
}

}  // namespace

bool multiplies(const Linear& w) {
  return w.in % kDepth == 0 && w.format != Linear::Format::f32 && w.format != Linear::Format::f16;
}

std::size_t packed_bytes(std::int64_t rows, std::int64_t dim, bool rounded) {
  return static_cast<std::size_t>(rows * dim) * (rounded ? 2 : 6);
}

Packed pack(Recorder& r, std::byte* to, const PackedRows& p, bool rounded) {
  auto* out = reinterpret_cast<std::uint16_t*>(to);
  const PackArgs args{p.x,
                      out,
                      p.rows,
                      p.dim,
                      p.rows * p.dim,
                      p.source_rows,
                      static_cast<std::int64_t>(kind_of(p.format)),
                      static_cast<std::int64_t>(kind_of(p.format_behind)),
                      p.boundary,
                      rounded ? 1 : 0,
                      rounded ? 1 : 3};
  r.launch(pack_kernel, dim3(static_cast<unsigned>((p.rows * (p.dim / kDepth) + 7) / 8)), 256, 0, args);
  return {out, p.rows * p.dim, p.dim};
}

void linear(Recorder& r, const LinearParams& p) {
  const Linear& w = *p.weight;
  const std::int64_t wide = p.groups * w.in, rows_per_group = w.out / p.groups;
  const bool rounded = p.rounding == InputRounding::e4m3 && w.quantised();
  if (multiplies(w)) {
    std::byte* to = r.scratch(kInput, packed_bytes(p.n_tokens, wide, rounded));
    const Packed in = pack(r, to, {p.x, p.n_tokens, wide, p.n_tokens, w.format, w.format, p.n_tokens}, rounded);
    const LinearArgs args{device_linear(w), {in.x, in.plane, in.stride}, p.y, p.n_tokens, rows_per_group};
    switch (kind_of(w.format)) {
      case Kind::fp8:
        return rounded ? launch_linear<Kind::fp8, 1>(r, args, p.groups) : launch_linear<Kind::fp8, 3>(r, args, p.groups);
      case Kind::fp4:
        return rounded ? launch_linear<Kind::fp4, 1>(r, args, p.groups) : launch_linear<Kind::fp4, 3>(r, args, p.groups);
      case Kind::bf16:
        return launch_linear<Kind::bf16, 3>(r, args, p.groups);
    }
  }
  if (w.format == Linear::Format::f32 && p.groups == 1 && w.out <= kMostMixerRows && w.in % kPiece == 0) {
    const std::int64_t pieces = w.in / kPiece;
    auto* sums = reinterpret_cast<float*>(
        r.scratch(kPartialSums, static_cast<std::size_t>(p.n_tokens * pieces * w.out) * sizeof(float)));
    const dim3 grid(static_cast<unsigned>(pieces), static_cast<unsigned>((p.n_tokens + kMixerTokens - 1) / kMixerTokens));
    r.launch(mixer_kernel, grid, 128, 0,
             MixerArgs{reinterpret_cast<const float*>(w.weight), p.x, sums, p.n_tokens, w.out, w.in});
    const std::int64_t count = p.n_tokens * w.out;
    r.launch(add_pieces_kernel, dim3(static_cast<unsigned>((count + 127) / 128)), 128, 0,
             AddPiecesArgs{sums, p.y, count, w.out, pieces});
    return;
  }
  const dim3 grid(static_cast<unsigned>((w.out + 7) / 8),
                  static_cast<unsigned>((p.n_tokens + kPlainTokens - 1) / kPlainTokens));
  r.launch(plain_kernel, grid, 256, 0, PlainArgs{device_linear(w), p.x, p.y, p.n_tokens, rows_per_group, wide});
}

}  // namespace hadal::cuda
