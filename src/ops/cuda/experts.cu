// Routed and shared experts: (token, expert) pairs sorted by expert into slots, the shared expert's behind
// them; then one launch each for w1 and w3, for w2, and for the sums.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/mma_rows.cuh"

namespace hadal::cuda {
namespace {

struct DeviceExpert {
  const std::uint8_t *w1, *s1, *w2, *s2, *w3, *s3;
};

// Consecutive slots of one expert.
struct Job {
  int expert, begin, count, unused;
};

struct Routing {
  const DeviceExpert* experts;  // [E + 1], the shared one last; null: not here
  const std::int32_t* indices;  // [T, k]
  const float* weights;         // [T, k]
  std::int32_t* slot_of;        // [T, k], -1: not here
  std::int32_t* token_of;       // of each slot
  float* weight_of;             // of each slot
  Job* jobs;
  std::int32_t* n_jobs;
  std::int64_t n_tokens, n_experts, k;
};

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
  std::int64_t tile, shared_tile;  // tokens of a job
};
// One block, a thread per expert (and for the shared one).
__global__ void __launch_bounds__(1024) assign_kernel(AssignArgs p) {
  __shared__ int counts[1024], cursors[1024], scratch[32];
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto pairs = static_cast<int>(p.r.n_tokens * p.r.k);
  const auto experts = static_cast<int>(p.r.n_experts);
  counts[tid] = 0;
  __syncthreads();
  for (int i = tid; i < pairs; i += threads) {
    const int e = p.r.indices[i];
    if (p.r.experts[e].w1 != nullptr) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  const bool shared = tid == experts && p.r.experts[experts].w1 != nullptr;
  const int count = tid < experts ? counts[tid] : shared ? static_cast<int>(p.r.n_tokens) : 0;
  const auto tile = static_cast<int>(tid < experts ? p.tile : p.shared_tile);
  const int sorted = exclusive_scan(count, scratch);
  const int begin = tid == experts ? pairs : sorted;  // the shared expert's slots are the last
  const int jobs = (count + tile - 1) / tile;
  const int first_job = exclusive_scan(jobs, scratch);
  cursors[tid] = begin;
  for (int i = 0; i < jobs; ++i) p.r.jobs[first_job + i] = {tid, begin + i * tile, min(tile, count - i * tile), 0};
  if (tid == threads - 1) *p.r.n_jobs = first_job + jobs;
  __syncthreads();
  for (int i = tid; i < pairs; i += threads) {
    const int e = p.r.indices[i];
    if (p.r.experts[e].w1 == nullptr) {
      p.r.slot_of[i] = -1;
      continue;
    }
    const int slot = atomicAdd(&cursors[e], 1);
    p.r.slot_of[i] = slot;
    p.r.token_of[slot] = static_cast<int>(i / p.r.k);
    p.r.weight_of[slot] = p.r.weights[i];
  }
  if (p.r.experts[experts].w1 == nullptr) return;
  for (int t = tid; t < p.r.n_tokens; t += threads) {
    p.r.token_of[pairs + t] = t;
    p.r.weight_of[pairs + t] = 1;
  }
}

__device__ inline float swiglu(float gate, float up, float weight, float limit) {
  const float g = fminf(gate, limit), u = fminf(fmaxf(up, -limit), limit);
  return weight * (g / (1.0F + expf(-g)) * u);
}

struct HiddenArgs {
  Routing r;
  PackedInput input;   // [2T, d]: for routed experts, then for the shared one
  float* hidden;       // [slots, I]
  std::int64_t dim, inter;
  std::int64_t limit;  // float bits
};

template <Kind kind, int kParts, int kTiles>
__device__ void hidden_of(const HiddenArgs& p, const Job& job) {
  const DeviceExpert& e = p.r.experts[job.expert];
  const DeviceLinear w[2] = {{e.w1, e.s1, p.inter, p.dim, 0}, {e.w3, e.s3, p.inter, p.dim, 0}};
  const std::int64_t row = std::int64_t{blockIdx.x} * 16;
  const std::int64_t behind = job.expert == p.r.n_experts ? p.r.n_tokens : 0;
  float out[2][(kTiles + 1) / 2];
  multiply_rows<kind, kParts, kTiles, 2>(
      w, row, p.inter, p.input,
      [&](int column) { return column < job.count ? behind + p.r.token_of[job.begin + column] : -1; }, out);
#pragma unroll
  for (int o = 0; o < (kTiles + 1) / 2; ++o) {
    const int at = static_cast<int>(threadIdx.x) + o * kRowThreads;
    if (at >= kTiles * 8 * 16 || at / 16 >= job.count || row + at % 16 >= p.inter) continue;
    const int slot = job.begin + at / 16;
    p.hidden[slot * p.inter + row + at % 16] =
        swiglu(out[0][o], out[1][o], p.r.weight_of[slot], __int_as_float(static_cast<int>(p.limit)));
  }
}

template <Kind routed, Kind shared, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads) hidden_kernel(HiddenArgs p) {
  if (blockIdx.y >= *p.r.n_jobs) return;
  const Job job = p.r.jobs[blockIdx.y];
  if (routed != shared && job.expert == p.r.n_experts)
    hidden_of<shared, kParts, kTiles>(p, job);
  else
    hidden_of<routed, kParts, kTiles>(p, job);
}

struct OutputArgs {
  Routing r;
  PackedInput input;  // [slots, I]
  float* output;      // [slots, d]
  std::int64_t dim, inter;
};

template <Kind kind, int kParts, int kTiles>
__device__ void output_of(const OutputArgs& p, const Job& job) {
  const DeviceExpert& e = p.r.experts[job.expert];
  const DeviceLinear w[1] = {{e.w2, e.s2, p.dim, p.inter, 0}};
  const std::int64_t row = std::int64_t{blockIdx.x} * 16;
  float out[1][(kTiles + 1) / 2];
  multiply_rows<kind, kParts, kTiles, 1>(
      w, row, p.dim, p.input, [&](int column) { return column < job.count ? job.begin + column : -1; }, out);
#pragma unroll
  for (int o = 0; o < (kTiles + 1) / 2; ++o) {
    const int at = static_cast<int>(threadIdx.x) + o * kRowThreads;
    if (at < kTiles * 8 * 16 && at / 16 < job.count && row + at % 16 < p.dim)
      p.output[(job.begin + at / 16) * p.dim + row + at % 16] = out[0][o];
  }
}

template <Kind routed, Kind shared, int kParts, int kTiles>
__global__ void __launch_bounds__(kRowThreads) output_kernel(OutputArgs p) {
  if (blockIdx.y >= *p.r.n_jobs) return;
  const Job job = p.r.jobs[blockIdx.y];
  if (routed != shared && job.expert == p.r.n_experts)
    output_of<shared, kParts, kTiles>(p, job);
  else
    output_of<routed, kParts, kTiles>(p, job);
}

// The same for weights that the matrix units do not take: a warp per row and pair, slots as pairs come.
struct PlainArgs {
  Routing r;
  const float* x;  // [T, d], or hidden [pairs + T, I]
  float* y;        // hidden, or output [pairs + T, d]
  std::int64_t dim, inter;
  std::int64_t format, shared_format;
  std::int64_t limit;
};
__device__ inline float plain_dot(const DeviceLinear& w, std::int64_t row, const float* x) {
  float sum = 0;
  for (std::int64_t k = threadIdx.x % kWarp; k < w.in; k += kWarp) sum = fmaf(weight_at(w, row, k), x[k], sum);
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
    result = swiglu(gate, up, shared ? 1.0F : p.r.weights[pair], __int_as_float(static_cast<int>(p.limit)));
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
    slots[place] = !here ? -1 : p.r.slot_of != nullptr ? p.r.slot_of[t * k + mine] : static_cast<int>(t * k) + mine;
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

Kind kind_of(Linear::Format format) {
  return format == Linear::Format::fp8 ? Kind::fp8 : format == Linear::Format::fp4 ? Kind::fp4 : Kind::bf16;
}

template <class Launch>
void for_kinds(Linear::Format routed, Linear::Format shared, bool rounded, Launch&& launch) {
  const Kind a = kind_of(routed), b = kind_of(shared);
  if (a == Kind::bf16 && b == Kind::bf16) return launch.template operator()<Kind::bf16, Kind::bf16, 3>();
  if (a == Kind::fp8 && b == Kind::fp8)
    return rounded ? launch.template operator()<Kind::fp8, Kind::fp8, 1>() : launch.template operator()<Kind::fp8, Kind::fp8, 3>();
  return rounded ? launch.template operator()<Kind::fp4, Kind::fp8, 1>() : launch.template operator()<Kind::fp4, Kind::fp8, 3>();
}

// Whether one of the instances of for_kinds takes these.
bool has_kernel(const Linear& routed, const Linear& shared) {
  if (!multiplies(routed) || !multiplies(shared)) return false;
  return routed.format == shared.format ? routed.format != Linear::Format::fp4
                                        : routed.format == Linear::Format::fp4 && shared.format == Linear::Format::fp8;
}

int bits_of(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

}  // namespace

void experts(Recorder& r, const ExpertsParams& p) {
  const auto n_experts = static_cast<std::int64_t>(p.experts.size());
  const std::int64_t pairs = p.n_tokens * p.k, slots = pairs + p.n_tokens;
  HADAL_CHECK(n_experts < 1024 && p.k <= 32);
  const auto some = std::find_if(p.experts.begin(), p.experts.end(), [](const Expert& e) { return e.has_weights(); });
  const Expert& routed = some != p.experts.end() ? *some : *p.shared;
  const Expert& shared = p.shared != nullptr ? *p.shared : routed;
  // Without a shared expert its kernels are there all the same, those that go with the routed ones.
  Linear::Format shared_format = shared.w1.format;
  if (p.shared == nullptr && shared_format == Linear::Format::fp4) shared_format = Linear::Format::fp8;
  Linear shared_like = shared.w1;
  shared_like.format = shared_format;
  const bool fast = has_kernel(routed.w1, shared_like) && multiplies(routed.w2);
  const bool rounded = p.rounding == InputRounding::e4m3 && routed.w1.quantised();

  // Scratch first: what is staged must not be sent before it is used.
  const auto align = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  const std::size_t most_jobs = static_cast<std::size_t>(slots);
  const std::size_t pair_bytes = align(static_cast<std::size_t>(pairs) * 4), slot_bytes = align(static_cast<std::size_t>(slots) * 4);
  std::byte* at = r.scratch(kExpertSlots, pair_bytes + 2 * slot_bytes + align(most_jobs * sizeof(Job)) + 256);
  auto* hidden = reinterpret_cast<float*>(r.scratch(kExpertHidden, static_cast<std::size_t>(slots * p.inter) * 4));
  auto* output = reinterpret_cast<float*>(r.scratch(kExpertOutput, static_cast<std::size_t>(slots * p.dim) * 4));
  std::byte* packed_x = r.scratch(kExpertInput, packed_bytes(2 * p.n_tokens, p.dim, rounded));
  std::byte* packed_hidden = r.scratch(kExpertHiddenInput, packed_bytes(slots, p.inter, rounded));

  std::vector<DeviceExpert> table;
  table.reserve(p.experts.size() + 1);
  const auto bytes = [](const std::byte* w) { return reinterpret_cast<const std::uint8_t*>(w); };
  const auto add = [&](const Expert& e) {
    table.push_back({bytes(e.w1.weight), e.w1.scale, bytes(e.w2.weight), e.w2.scale, bytes(e.w3.weight), e.w3.scale});
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

  if (fast) {
    const std::int64_t mean = pairs / n_experts;
    const int tiles = mean <= 8 ? 1 : mean <= 16 ? 2 : 4;
    const std::int64_t tile = 8 * tiles;
    r.launch(assign_kernel, dim3(1), 1024, 0, AssignArgs{routing, tile, tile});
    const std::int64_t routed_jobs = std::min(pairs, std::min(n_experts, pairs) + pairs / tile);
    const auto jobs = static_cast<unsigned>(routed_jobs + (p.n_tokens + tile - 1) / tile);
    const Packed x = pack(r, packed_x,
                          {p.x, 2 * p.n_tokens, p.dim, p.n_tokens, routed.w1.format, shared_format, p.n_tokens}, rounded);
    const HiddenArgs hidden_args{routing, {x.x, x.plane, x.stride}, hidden, p.dim, p.inter, bits_of(p.swiglu_limit)};
    for_kinds(routed.w1.format, shared_format, rounded, [&]<Kind a, Kind b, int parts>() {
      const dim3 grid(static_cast<unsigned>((p.inter + 15) / 16), jobs);
      const auto launch = [&](auto kernel) { r.launch(kernel, grid, kRowThreads, row_shared_bytes(tiles, 2), hidden_args); };
      tiles == 1   ? launch(hidden_kernel<a, b, parts, 1>)
      : tiles == 2 ? launch(hidden_kernel<a, b, parts, 2>)
                   : launch(hidden_kernel<a, b, parts, 4>);
    });
    const Packed h = pack(r, packed_hidden,
                          {hidden, slots, p.inter, slots, routed.w1.format, shared_format, pairs}, rounded);
    const OutputArgs output_args{routing, {h.x, h.plane, h.stride}, output, p.dim, p.inter};
    for_kinds(routed.w1.format, shared_format, rounded, [&]<Kind a, Kind b, int parts>() {
      const dim3 grid(static_cast<unsigned>((p.dim + 15) / 16), jobs);
      const auto launch = [&](auto kernel) { r.launch(kernel, grid, kRowThreads, row_shared_bytes(tiles, 1), output_args); };
      tiles == 1   ? launch(output_kernel<a, b, parts, 1>)
      : tiles == 2 ? launch(output_kernel<a, b, parts, 2>)
                   : launch(output_kernel<a, b, parts, 4>);
    });
  } else {
    routing.slot_of = nullptr;
    PlainArgs args{routing,  p.x,     hidden,
                   p.dim,    p.inter, static_cast<std::int64_t>(routed.w1.format),
                   static_cast<std::int64_t>(shared.w1.format), bits_of(p.swiglu_limit)};
    r.launch(plain_kernel<true>, dim3(static_cast<unsigned>(slots), static_cast<unsigned>((p.inter + 7) / 8)), 256, 0, args);
    args.x = hidden;
    args.y = output;
    r.launch(plain_kernel<false>, dim3(static_cast<unsigned>(slots), static_cast<unsigned>((p.dim + 7) / 8)), 256, 0, args);
  }
  r.launch(combine_kernel, dim3(static_cast<unsigned>(p.n_tokens), static_cast<unsigned>((p.dim + 255) / 256)), 256, 0,
           CombineArgs{routing, output, p.out, p.dim, p.accumulate ? 1 : 0, 0});
}

}  // namespace hadal::cuda
