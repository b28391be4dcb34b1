// Ops on rows: norm, rotation, Hadamard, quantisers in one kernel; embedding, copies, the way into the state.
#include <algorithm>

#include "ops/cuda/device.cuh"
#include "ops/cuda/ops.h"
#include "ops/cuda/weights.cuh"

namespace hadal::cuda {
namespace {

unsigned blocks(std::int64_t n, std::int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

struct RowArgs {
  const float* x;
  float* out;
  const float* weight;
  const float* cos;
  const float* sin;
  int dim, heads, rope_dim, quantised_dim, quantised_block, bf16_begin;
  int norm, rope, hadamard, e2m1;
  float eps, sign;
};

// A block per row, which stays in shared memory from step to step.
__global__ void row_kernel(RowArgs p) {
  extern __shared__ double shared[];  // 32 partial sums, the row
  float* row = reinterpret_cast<float*>(shared + 32);
  const int dim = p.dim, tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const float* x = p.x + std::int64_t{blockIdx.x} * dim;
  double squares = 0;
  for (int i = tid; i < dim; i += threads) {
    const float v = x[i];
    row[i] = v;
    squares += double{v} * double{v};
  }
  if (p.norm != 0) {
    squares = block_sum(squares, shared);
    const float inverse = 1.0F / sqrtf(static_cast<float>(squares / dim) + p.eps);
    for (int i = tid; i < dim; i += threads) {
      const float normalised = row[i] * inverse;
      row[i] = p.weight != nullptr ? p.weight[i] * normalised : normalised;
    }
  }
  __syncthreads();
  if (p.rope != 0) {
    const int half = p.rope_dim / 2;
    const std::int64_t token = blockIdx.x / static_cast<unsigned>(p.heads);
    float* tail = row + dim - p.rope_dim;
    for (int i = tid; i < half; i += threads) {
      const float c = p.cos[token * half + i], s = p.sign * p.sin[token * half + i];
      const float even = tail[2 * i], odd = tail[2 * i + 1];
      tail[2 * i] = even * c - odd * s;
      tail[2 * i + 1] = even * s + odd * c;
    }
    __syncthreads();
  }
  if (p.hadamard != 0) {
    for (int half = 1; half < dim; half *= 2) {
      for (int pair = tid; pair < dim / 2; pair += threads) {
        const int i = pair / half * 2 * half + pair % half;
        const float a = row[i], b = row[i + half];
        row[i] = a + b;
        row[i + half] = a - b;
      }
      __syncthreads();
    }
    const float factor = static_cast<float>(1 / sqrt(static_cast<double>(dim)));
    for (int i = tid; i < dim; i += threads) row[i] *= factor;
    __syncthreads();
  }
  const int lane = tid % kWarp, n = p.quantised_block;
  for (int block = tid / kWarp * n; block < p.quantised_dim; block += threads / kWarp * n) {
    float amax = 0;
    for (int i = lane; i < n; i += kWarp) amax = fmaxf(amax, fabsf(row[block + i]));
    amax = warp_max(amax);
    const float factor = e8m0(p.e2m1 != 0 ? e2m1_scale(amax) : e4m3_scale(amax));
    for (int i = lane; i < n; i += kWarp) {
      const float v = row[block + i] / factor;
      row[block + i] = (p.e2m1 != 0 ? e2m1(to_e2m1(v)) : e4m3(to_e4m3(v))) * factor;
    }
  }
  __syncthreads();
  float* out = p.out + std::int64_t{blockIdx.x} * dim;
  for (int i = tid; i < dim; i += threads) out[i] = i >= p.bf16_begin ? round_bf16(row[i]) : row[i];
}

struct EmbedArgs {
  const std::int32_t* tokens;
  DeviceLinear embed;
  float* out;
  std::int64_t copies;
};
__global__ void embed_kernel(EmbedArgs p) {
  const std::int64_t t = blockIdx.x, d = p.embed.in;
  for (std::int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    const float v = weight_at(p.embed, p.tokens[t], i);
    for (std::int64_t copy = 0; copy < p.copies; ++copy) p.out[(t * p.copies + copy) * d + i] = v;
  }
}

struct AnglesArgs {
  const std::int64_t* positions;
  const float* frequencies;
  float* cos;
  float* sin;
  std::int64_t count, half;
};
__global__ void angles_kernel(AnglesArgs p) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= p.count * p.half) return;
  const float product = static_cast<float>(p.positions[at / p.half]) * p.frequencies[at % p.half];
  const auto angle = static_cast<double>(product);
  p.cos[at] = static_cast<float>(cos(angle));
  p.sin[at] = static_cast<float>(sin(angle));
}

struct ScaleArgs {
  float* x;
  std::int64_t count;
  float factor;
  int unused;
};
__global__ void scale_kernel(ScaleArgs p) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < p.count) p.x[at] *= p.factor;
}

struct AddRowsArgs {
  const float* y;
  float* x;
  std::int64_t count, dim, repeat;
};
__global__ void add_rows_kernel(AddRowsArgs p) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < p.count) p.x[at] += p.y[at / p.dim / p.repeat * p.dim + at % p.dim];
}

struct GatherArgs {
  const std::int64_t* rows;
  const float* x;
  float* out;
  std::int64_t dim;
};
__global__ void gather_kernel(GatherArgs p) {
  const std::int64_t row = p.rows[blockIdx.x];
  const std::int64_t at = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (at < p.dim) p.out[blockIdx.x * p.dim + at] = p.x[row * p.dim + at];
}

struct StoreArgs {
  const float* x;
  const StoreRowsParams::Place* places;
  DeviceRowShape shape;
};
// A block per row.
__global__ void store_kernel(StoreArgs p) {
  const StoreRowsParams::Place place = p.places[blockIdx.x];
  const float* x = p.x + place.row * p.shape.dim;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = tid % kWarp, warp = tid / kWarp, warps = threads / kWarp, dim = p.shape.dim;
  if (p.shape.format == RowFormat::f32) {
    float* to = reinterpret_cast<float*>(place.rows) + place.i * dim;
    for (int i = tid; i < dim; i += threads) to[i] = x[i];
    return;
  }
  if (p.shape.format == RowFormat::fp8_bf16) {
    auto* to = reinterpret_cast<std::uint8_t*>(place.rows) + place.i * p.shape.bytes;
    const int codes = p.shape.codes;
    for (int block = warp; block < codes / 64; block += warps) {
      const float a = x[block * 64 + lane], b = x[block * 64 + 32 + lane];
      const std::uint8_t byte = e4m3_scale(warp_max(fmaxf(fabsf(a), fabsf(b))));
      const float factor = e8m0(byte);
      to[block * 64 + lane] = to_e4m3(a / factor);
      to[block * 64 + 32 + lane] = to_e4m3(b / factor);
      if (lane == 0) to[codes + block] = byte;
    }
    for (int i = codes + codes / 64 + tid; i < p.shape.rope_at; i += threads) to[i] = 0;
    auto* rope = reinterpret_cast<std::uint16_t*>(to + p.shape.rope_at);
    for (int i = codes + tid; i < dim; i += threads) rope[i - codes] = bf16_bits(x[i]);
    return;
  }
  // fp4_tiles
  const auto in_tile = static_cast<int>(place.i % kTileRows);
  auto* tile = reinterpret_cast<std::uint8_t*>(place.rows) + place.i / kTileRows * kTileRows * p.shape.bytes;
  for (int block = warp; block < dim / 32; block += warps) {
    const float v = x[block * 32 + lane];
    const std::uint8_t byte = e2m1_scale(warp_max(fabsf(v)));
    const unsigned code = to_e2m1(v / e8m0(byte));
    const unsigned next = __shfl_down_sync(kAll, code, 1);
    const int k = block * 32 + lane;
    if (lane % 2 == 0)
      tile[(k / 8 * 16 + in_tile) * 4 + k % 8 / 2] = static_cast<std::uint8_t>(code | next << 4);
    if (lane == 0) tile[16 * (dim / 2) + block * 16 + in_tile] = byte;
  }
}

}  // namespace

void row_steps(Recorder& r, const RowSteps& p) {
  const int block = p.format == QuantiseParams::Format::e4m3_64   ? 64
                    : p.format == QuantiseParams::Format::e2m1_32 ? 32
                                                                  : 128;
  const RowArgs args{p.x,
                     p.out,
                     p.weight,
                     p.cos,
                     p.sin,
                     static_cast<int>(p.dim),
                     static_cast<int>(p.heads),
                     static_cast<int>(p.rope_dim),
                     p.quantise ? static_cast<int>(p.quantised_dim) : 0,
                     block,
                     p.bf16 ? static_cast<int>(p.bf16_begin) : static_cast<int>(p.dim),
                     p.norm ? 1 : 0,
                     p.rope ? 1 : 0,
                     p.hadamard ? 1 : 0,
                     p.format == QuantiseParams::Format::e2m1_32 ? 1 : 0,
                     p.eps,
                     p.inverse ? -1.0F : 1.0F};
  const std::int64_t tokens = p.rope ? p.rows / p.heads : 0;
  const unsigned threads = p.dim >= 1024 ? 256 : p.dim >= 512 ? 128 : p.dim >= 64 ? 64 : 32;
  r.launch(row_kernel, dim3(static_cast<unsigned>(p.rows)), threads,
           32 * sizeof(double) + static_cast<std::size_t>(p.dim) * sizeof(float), args,
           {range(p.x, p.rows * p.dim), range(p.cos, tokens * p.rope_dim / 2),
            range(p.sin, tokens * p.rope_dim / 2)},
           {range(p.out, p.rows * p.dim)});
}

void embed(Recorder& r, const EmbedParams& p) {
  const EmbedArgs args{r.stage(p.tokens), device_linear(*p.embed), p.out, p.copies};
  const auto count = static_cast<std::int64_t>(p.tokens.size());
  r.launch(embed_kernel, dim3(static_cast<unsigned>(count)), 256, 0, args, {},
           {range(p.out, count * p.copies * p.embed->in)});
}

void angles(Recorder& r, const AnglesParams& p) {
  const auto count = static_cast<std::int64_t>(p.positions.size()),
             half = static_cast<std::int64_t>(p.frequencies.size());
  const AnglesArgs args{r.stage(p.positions), r.stage(p.frequencies), p.cos, p.sin, count, half};
  r.launch(angles_kernel, dim3(blocks(count * half, 128)), 128, 0, args, {},
           {range(p.cos, count * half), range(p.sin, count * half)});
}

void scale(Recorder& r, const ScaleParams& p) {
  r.launch(scale_kernel, dim3(blocks(p.count, 256)), 256, 0, ScaleArgs{p.x, p.count, p.factor, 0},
           {range(p.x, p.count)}, {range(p.x, p.count)});
}

void add_rows(Recorder& r, const AddRowsParams& p) {
  const std::int64_t count = p.rows * p.dim;
  r.launch(add_rows_kernel, dim3(blocks(count, 256)), 256, 0, AddRowsArgs{p.y, p.x, count, p.dim, p.repeat},
           {range(p.y, count / p.repeat), range(p.x, count)}, {range(p.x, count)});
}

void gather_rows(Recorder& r, const GatherRowsParams& p) {
  const dim3 grid(static_cast<unsigned>(p.rows.size()), blocks(p.dim, 256));
  const std::int64_t most = *std::max_element(p.rows.begin(), p.rows.end());
  r.launch(gather_kernel, grid, 256, 0, GatherArgs{r.stage(p.rows), p.x, p.out, p.dim},
           {range(p.x, (most + 1) * p.dim)},
           {range(p.out, static_cast<std::int64_t>(p.rows.size()) * p.dim)});
}

void store_rows(Recorder& r, const StoreRowsParams& p) {
  const StoreArgs args{p.x, r.stage(p.places), device_shape(p.shape)};
  std::int64_t most = 0;
  for (const StoreRowsParams::Place& place : p.places) most = std::max(most, place.row);
  r.launch(store_kernel, dim3(static_cast<unsigned>(p.places.size())), 128, 0, args,
           {range(p.x, (most + 1) * p.shape.dim)}, {sequence_rows()});
}

}  // namespace hadal::cuda
