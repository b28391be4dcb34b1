// Routed and shared experts: (token, expert) pairs sorted by expert into slots, the shared expert's behind
// them; then launches for w1 and w3 and for w2 of both, and one for the sums.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cuda/expert_problems.cuh"
#include "ops/cuda/linear.h"

namespace hadal::cuda {
namespace {

// Adds up over the block: the sum of the values of the threads before this one.
__device__ int exclusive_scan(int value, int* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int sum = value;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAll, sum, distance);
    if (lane >= distance) sum += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  int before = 0;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  return before + sum - value;
}

struct AssignArgs {
  Routing r;
  std::int64_t tile;  // tokens of a job
};
// One block, a thread per expert.
__global__ void __launch_bounds__(1024) assign_kernel(AssignArgs p) {
  __shared__ int counts[1024], cursors[1024], scratch[32];
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto pairs = static_cast<int>(p.r.n_tokens * p.r.k), tile = static_cast<int>(p.tile);
  counts[tid] = 0;
  __syncthreads();
  for (int i = tid; i < pairs; i += threads) {
    const int e = p.r.indices[i];
    if (p.r.experts[e].w1 != nullptr) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  const int count = counts[tid], begin = exclusive_scan(count, scratch);
  const int jobs = (count + tile - 1) / tile, first_job = exclusive_scan(jobs, scratch);
  cursors[tid] = begin;
  for (int i = 0; i < jobs; ++i) {
    p.r.jobs[first_job + i] = {p.r.experts[tid], begin + i * tile, min(tile, count - i * tile)};
  }
  if (tid == threads - 1) *p.r.n_jobs = first_job + jobs;
  __syncthreads();
  for (int i = tid; i < pairs; i += threads) {
    const int e = p.r.indices[i];
    if (p.r.experts[e].w1 == nullptr) {
      p.r.slot_of[i] = -1;
      continue;
    }
    const int slot = atomicAdd(&cursors[e], 1);  // their order within the expert changes nothing
    p.r.slot_of[i] = slot;
    p.r.token_of[slot] = static_cast<int>(i / p.r.k);
    p.r.weight_of[slot] = p.r.weights[i];
  }
}

template <Kind kind, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads, row_blocks(kParts, kTiles)) few_hidden_kernel(ExpertArgs p) {
  const int row_tiles = (static_cast<int>(p.inter) + 15) / 16;
  multiply_rows<kind, kParts, kTiles>(FewHidden{p, row_tiles}, static_cast<int>(blockIdx.x),
                                      static_cast<int>(gridDim.x), p.jobs() * row_tiles, p.kept_rounds);
}
template <Kind kind, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads, row_blocks(kParts, kTiles)) few_output_kernel(ExpertArgs p) {
  const int row_tiles = (static_cast<int>(p.dim) + 15) / 16;
  multiply_rows<kind, kParts, kTiles>(FewOutput{p, row_tiles}, static_cast<int>(blockIdx.x),
                                      static_cast<int>(gridDim.x), p.jobs() * row_tiles, p.kept_rounds);
}

template <Kind kind, int kParts, int kTokens>
__global__ void __launch_bounds__(kTileThreads, 1) many_hidden_kernel(ExpertArgs p) {
  const int row_tiles = (static_cast<int>(p.inter) + kTileRows64 - 1) / kTileRows64,
            work = static_cast<int>(blockIdx.x);
  if (work < p.jobs() * row_tiles) multiply_tile<kind, kParts>(ManyHidden<kTokens>{p, row_tiles}, work);
}
template <Kind kind, int kParts, int kTokens>
__global__ void __launch_bounds__(kTileThreads, 1) many_output_kernel(ExpertArgs p) {
  const int row_tiles = (static_cast<int>(p.dim) + 2 * kTileRows64 - 1) / (2 * kTileRows64);
  const int work = static_cast<int>(blockIdx.x);
  if (work < p.jobs() * row_tiles) multiply_tile<kind, kParts>(ManyOutput<kTokens>{p, row_tiles}, work);
}

// The same for weights that the matrix units do not take: a warp per row and pair, slots as pairs come.
struct PlainArgs {
  Routing r;
  const float* x;  // [T, d], or hidden [pairs + T, I]
  float* y;        // hidden, or output [pairs + T, d]
  std::int64_t dim, inter;
  std::int64_t format, shared_format;
  float limit;
  int unused;
};
__device__ inline float plain_dot(const DeviceLinear& w, std::int64_t row, const float* x) {
  float sum = 0;
  for (std::int64_t k = threadIdx.x % kWarp; k < w.in; k += kWarp)
    sum = fmaf(weight_at(w, row, k), x[k], sum);
  return warp_sum(sum);
}
template <bool hidden>
__global__ void plain_kernel(PlainArgs p) {
  const std::int64_t rows = hidden ? p.inter : p.dim, in = hidden ? p.dim : p.inter;
  const std::int64_t row = std::int64_t{blockIdx.y} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const std::int64_t pair = blockIdx.x, pairs = p.r.n_tokens * p.r.k;
  const bool shared = pair >= pairs;
  const DeviceExpert& e = p.r.experts[shared ? p.r.n_experts : p.r.indices[pair]];
  if (row >= rows || e.w1 == nullptr) return;
  const std::int64_t format = shared ? p.shared_format : p.format;
  float result;
  if (hidden) {
    const float* x = p.x + (shared ? pair - pairs : pair / p.r.k) * in;
    const float gate = plain_dot({e.w1, e.s1, rows, in, format}, row, x);
    const float up = plain_dot({e.w3, e.s3, rows, in, format}, row, x);
    result = swiglu(gate, up, shared ? 1.0F : p.r.weights[pair], p.limit);
  } else {
    result = plain_dot({e.w2, e.s2, rows, in, format}, row, p.x + pair * in);
  }
  if (threadIdx.x % kWarp == 0) p.y[pair * rows + row] = result;
}

struct CombineArgs {
  Routing r;            // slot_of null: pairs are slots
  const float* output;  // [slots, d]
  float* out;           // [T, d]
  std::int64_t dim;
  int accumulate, unused;
};
// out[t] = its experts by ascending id, then the shared one.
__global__ void combine_kernel(CombineArgs p) {
  constexpr int kMost = 32;
  __shared__ int slots[kMost];
  const auto k = static_cast<int>(p.r.k);
  const std::int64_t t = blockIdx.x, pairs = p.r.n_tokens * k;
  if (threadIdx.x < k) {
    // The place of a pair: how many of the token's pairs come before it.
    const int mine = static_cast<int>(threadIdx.x), id = p.r.indices[t * k + mine];
    int place = 0;
    for (int i = 0; i < k; ++i) {
      const int other = p.r.indices[t * k + i];
      place += other < id || (other == id && i < mine) ? 1 : 0;
    }
    const bool here = p.r.experts[id].w1 != nullptr;
    slots[place] = !here                    ? -1
                   : p.r.slot_of != nullptr ? p.r.slot_of[t * k + mine]
                                            : static_cast<int>(t * k) + mine;
  }
  __syncthreads();
  const std::int64_t at = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (at >= p.dim) return;
  float sum = p.accumulate != 0 ? p.out[t * p.dim + at] : 0.0F;
  for (int i = 0; i < k; ++i) {
    if (slots[i] >= 0) sum += p.output[slots[i] * p.dim + at];
  }
  if (p.r.experts[p.r.n_experts].w1 != nullptr) sum += p.output[(pairs + t) * p.dim + at];
  p.out[t * p.dim + at] = sum;
}

// How the (token, expert) pairs of a launch go through the device.
struct Plan {
  bool in_tiles = false;
  int tokens = 64;         // of a tile
  int tiles = 1;           // of eight tokens, if not in tiles
  std::int64_t most_jobs;  // that there can be

  std::int64_t tile() const { return in_tiles ? tokens : 8 * tiles; }
};
// For `experts` experts that share `pairs` pairs. None of this changes a bit of the result.
Plan plan(std::int64_t pairs, std::int64_t experts) {
  Plan out;
  const std::int64_t mean = pairs / experts;
  out.in_tiles = mean >= 24;
  out.tokens = mean <= 64 ? 64 : 128;
  out.tiles = mean <= 6 ? 1 : mean <= 12 ? 2 : 4;
  out.most_jobs = std::min(pairs, std::min(experts, pairs) + pairs / out.tile());
  return out;
}

template <class Launch>
void for_kind(Linear::Format format, bool rounded, Launch&& launch) {
  switch (kind_of(format)) {
    case Kind::fp8:
      return rounded ? launch.template operator()<Kind::fp8, 1>()
                     : launch.template operator()<Kind::fp8, 3>();
    case Kind::fp4:
      return rounded ? launch.template operator()<Kind::fp4, 1>()
                     : launch.template operator()<Kind::fp4, 3>();
    case Kind::bf16:
      return launch.template operator()<Kind::bf16, 3>();
  }
}

void launch_hidden(Recorder& r, ExpertArgs args, const Plan& plan, Linear::Format format, bool rounded,
                   std::initializer_list<Range> reads, std::initializer_list<Range> writes) {
  for_kind(format, rounded, [&]<Kind kind, int parts>() {
    if (plan.in_tiles) {
      const std::int64_t tiles = plan.most_jobs * ((args.inter + kTileRows64 - 1) / kTileRows64);
      r.launch(plan.tokens == 64 ? many_hidden_kernel<kind, parts, 64> : many_hidden_kernel<kind, parts, 128>,
               dim3(static_cast<unsigned>(tiles)), kTileThreads, tile_shared_bytes(parts, plan.tokens), args,
               reads, writes);
      return;
    }
    const RowShared shared = row_shared(args.dim, plan.tiles, 2);
    args.kept_rounds = shared.rounds;
    const std::int64_t items = plan.most_jobs * ((args.inter + 15) / 16);
    const auto launch = [&](auto kernel) {
      r.launch(kernel,
               dim3(static_cast<unsigned>(std::min(items, kMultiprocessors * row_blocks(parts, plan.tiles)))),
               kRowThreads, shared.bytes, args, reads, writes);
    };
    plan.tiles == 1   ? launch(few_hidden_kernel<kind, parts, 1>)
    : plan.tiles == 2 ? launch(few_hidden_kernel<kind, parts, 2>)
                      : launch(few_hidden_kernel<kind, parts, 4>);
  });
}

void launch_output(Recorder& r, ExpertArgs args, const Plan& plan, Linear::Format format, bool rounded,
                   std::initializer_list<Range> reads, std::initializer_list<Range> writes) {
  for_kind(format, rounded, [&]<Kind kind, int parts>() {
    if (plan.in_tiles) {
      const std::int64_t tiles = plan.most_jobs * ((args.dim + 2 * kTileRows64 - 1) / (2 * kTileRows64));
      r.launch(plan.tokens == 64 ? many_output_kernel<kind, parts, 64> : many_output_kernel<kind, parts, 128>,
               dim3(static_cast<unsigned>(tiles)), kTileThreads, tile_shared_bytes(parts, plan.tokens), args,
               reads, writes);
      return;
    }
    const RowShared shared = row_shared(args.inter, plan.tiles, 1);
    args.kept_rounds = shared.rounds;
    const std::int64_t items = plan.most_jobs * ((args.dim + 15) / 16);
    const auto launch = [&](auto kernel) {
      r.launch(kernel,
               dim3(static_cast<unsigned>(std::min(items, kMultiprocessors * row_blocks(parts, plan.tiles)))),
               kRowThreads, shared.bytes, args, reads, writes);
    };
    plan.tiles == 1   ? launch(few_output_kernel<kind, parts, 1>)
    : plan.tiles == 2 ? launch(few_output_kernel<kind, parts, 2>)
                      : launch(few_output_kernel<kind, parts, 4>);
  });
}

}  // namespace

void experts(Recorder& r, const ExpertsParams& p) {
  const auto n_experts = static_cast<std::int64_t>(p.experts.size());
  const std::int64_t pairs = p.n_tokens * p.k, slots = pairs + p.n_tokens;
  HADAL_CHECK(n_experts < 1024 && p.k <= 32);
  const auto some =
      std::find_if(p.experts.begin(), p.experts.end(), [](const Expert& e) { return e.has_weights(); });
  const Expert* routed = some != p.experts.end() ? &*some : nullptr;
  const bool fast = (routed == nullptr || (multiplies(routed->w1) && multiplies(routed->w2))) &&
                    (p.shared == nullptr || (multiplies(p.shared->w1) && multiplies(p.shared->w2)));

  // Scratch first: what is staged must not be sent before it is used.
  const auto align = [](std::int64_t bytes) { return static_cast<std::size_t>((bytes + 255) / 256 * 256); };
  const std::size_t pair_bytes = align(pairs * 4), slot_bytes = align(slots * 4);
  const std::size_t slots_bytes =
      pair_bytes + 2 * slot_bytes + align(slots * std::int64_t{sizeof(Job)}) + 256;
  std::byte* at = r.scratch(kExpertSlots, slots_bytes);
  auto* hidden =
      reinterpret_cast<float*>(r.scratch(kExpertHidden, static_cast<std::size_t>(slots * p.inter) * 4));
  auto* output =
      reinterpret_cast<float*>(r.scratch(kExpertOutput, static_cast<std::size_t>(slots * p.dim) * 4));

  std::vector<DeviceExpert> table;
  table.reserve(p.experts.size() + 1);
  const auto bytes = [](const std::byte* w) { return reinterpret_cast<const std::uint8_t*>(w); };
  const auto add = [&](const Expert& e) {
    table.push_back(
        {bytes(e.w1.weight), e.w1.scale, bytes(e.w2.weight), e.w2.scale, bytes(e.w3.weight), e.w3.scale});
  };
  for (const Expert& e : p.experts) add(e);
  add(p.shared != nullptr ? *p.shared : Expert{});

  Routing routing{};
  routing.experts = r.stage(std::span<const DeviceExpert>(table));
  routing.indices = p.indices;
  routing.weights = p.weights;
  routing.slot_of = reinterpret_cast<std::int32_t*>(at);
  routing.token_of = reinterpret_cast<std::int32_t*>(at + pair_bytes);
  routing.weight_of = reinterpret_cast<float*>(at + pair_bytes + slot_bytes);
  routing.n_jobs = reinterpret_cast<std::int32_t*>(at + pair_bytes + 2 * slot_bytes);
  routing.jobs = reinterpret_cast<Job*>(at + pair_bytes + 2 * slot_bytes + 256);
  routing.n_tokens = p.n_tokens;
  routing.n_experts = n_experts;
  routing.k = p.k;

  const Range x_range = range(p.x, p.n_tokens * p.dim), slots_range{at, at + slots_bytes};
  const Range indices = range(p.indices, pairs), weights = range(p.weights, pairs);
  const Range all_hidden = range(hidden, slots * p.inter), all_output = range(output, slots * p.dim);
  if (fast) {
    const auto run = [&](const Expert& like, bool shared, const Plan& plan) {
      const bool rounded = p.rounding == InputRounding::e4m3 && like.w1.quantised();
      const int parts = rounded ? 1 : 3;
      const std::int64_t first = shared ? pairs : 0, count = shared ? p.n_tokens : pairs;
      const Range own_hidden = range(hidden + first * p.inter, count * p.inter);
      const Range own_output = range(output + first * p.dim, count * p.dim);
      const PackedInput x = pack(r, p.x, p.n_tokens, p.dim, like.w1.format, rounded, plan.in_tiles);
      ExpertArgs args{
          routing,        x, hidden, p.dim, p.inter, static_cast<int>(plan.tile()), shared ? 1 : 0,
          p.swiglu_limit, 0};
      launch_hidden(r, args, plan, like.w1.format, rounded, {range(x.x, x.plane * parts), slots_range},
                    {own_hidden});
      args.in = pack(r, hidden + first * p.inter, count, p.inter, like.w2.format, rounded, plan.in_tiles);
      args.out = output;
      launch_output(r, args, plan, like.w2.format, rounded,
                    {range(args.in.x, args.in.plane * parts), slots_range}, {own_output});
    };
    const Plan routed_plan = plan(pairs, n_experts);
    r.launch(assign_kernel, dim3(1), 1024, 0, AssignArgs{routing, routed_plan.tile()}, {indices, weights},
             {slots_range});
    if (routed != nullptr) run(*routed, false, routed_plan);
    if (p.shared != nullptr) {
      Plan shared_plan = plan(p.n_tokens, 1);
      shared_plan.most_jobs = (p.n_tokens + shared_plan.tile() - 1) / shared_plan.tile();
      run(*p.shared, true, shared_plan);
    }
  } else {
    routing.slot_of = nullptr;
    PlainArgs args{routing,
                   p.x,
                   hidden,
                   p.dim,
                   p.inter,
                   static_cast<std::int64_t>((routed != nullptr ? *routed : *p.shared).w1.format),
                   static_cast<std::int64_t>((p.shared != nullptr ? *p.shared : *routed).w1.format),
                   p.swiglu_limit,
                   0};
    r.launch(plain_kernel<true>, dim3(static_cast<unsigned>(slots), static_cast<unsigned>((p.inter + 7) / 8)),
             256, 0, args, {x_range, indices, weights}, {all_hidden});
    args.x = hidden;
    args.y = output;
    r.launch(plain_kernel<false>, dim3(static_cast<unsigned>(slots), static_cast<unsigned>((p.dim + 7) / 8)),
             256, 0, args, {all_hidden, indices}, {all_output});
  }
  const Range out = range(p.out, p.n_tokens * p.dim);
  r.launch(combine_kernel,
           dim3(static_cast<unsigned>(p.n_tokens), static_cast<unsigned>((p.dim + 255) / 256)), 256, 0,
           CombineArgs{routing, output, p.out, p.dim, p.accumulate ? 1 : 0, 0},
           {all_output, indices, slots_range, out}, {out});
}

}  // namespace hadal::cuda
