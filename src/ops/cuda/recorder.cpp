#include "ops/cuda/recorder.h"

#include <algorithm>

#include "base/check.h"

namespace hadal::cuda {
namespace {

constexpr std::size_t kAlignment = 16;
// Shared memory of a block: what every kernel may use, and what it may after asking.
constexpr std::size_t kPlainShared = 48 << 10;
constexpr int kMostShared = 227 << 10;
constexpr std::size_t kLooksBack = 24;  // entries that new data is compared with

}  // namespace

Range sequence_rows() {
  static const std::byte tag{};
  return {&tag, &tag + 1};
}

Recorder::Recorder(DeviceMemory& memory) : memory_(memory) {
  void *host = nullptr, *device = nullptr;
  check(cudaMallocHost(&host, kStaging), "cudaMallocHost");
  check(cudaMalloc(&device, kStaging), "cudaMalloc");
  host_ = static_cast<std::byte*>(host);
  device_ = static_cast<std::byte*>(device);
  check(cudaEventCreateWithFlags(&uploaded_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

Recorder::~Recorder() {
  cudaStreamSynchronize(memory_.stream());
  for (const Graph& graph : graphs_) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  }
  cudaEventDestroy(uploaded_);
  cudaFreeHost(host_);
  cudaFree(device_);
}

std::byte* Recorder::add(const void* kernel, dim3 grid, unsigned threads, std::size_t shared,
                         std::size_t args, std::initializer_list<Range> reads,
                         std::initializer_list<Range> writes) {
  if (shared > kPlainShared && allowed_.insert(kernel).second) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kMostShared - static_cast<int>(attributes.sharedSizeBytes)),
          "cudaFuncSetAttribute");
  }
  for (const Range& written : writes) {
    std::erase_if(derived_,
                  [&](const Derived& d) { return written.overlaps(d.source) || written.overlaps(d.place); });
  }
  const std::size_t at = (args_.size() + kAlignment - 1) / kAlignment * kAlignment;
  args_.resize(at + args);
  commands_.push_back({kernel, grid, threads, static_cast<std::uint32_t>(shared),
                       static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(ranges_.size()),
                       static_cast<std::uint32_t>(reads.size()), static_cast<std::uint32_t>(writes.size())});
  ranges_.insert(ranges_.end(), reads);
  ranges_.insert(ranges_.end(), writes);
  return args_.data() + at;
}

const Recorder::Derived* Recorder::find_derived(const Range& source, std::uint64_t key,
                                                std::int64_t columns) const {
  const auto known = std::find_if(derived_.begin(), derived_.end(), [&](const Derived& d) {
    return d.source.begin == source.begin && d.source.end == source.end && d.key == key &&
           d.columns == columns;
  });
  return known == derived_.end() ? nullptr : &*known;
}

const void* Recorder::stage_bytes(const void* data, std::size_t bytes) {
  const std::size_t last = entries_.size(), first = last > kLooksBack ? last - kLooksBack : 0;
  for (std::size_t i = last; i > first; --i) {
    const Staged& entry = entries_[i - 1];
    if (entry.bytes == bytes && std::memcmp(host_ + entry.at, data, bytes) == 0) return device_ + entry.at;
  }
  if (uploading_) {  // the last upload still reads what is about to be overwritten
    check(cudaEventSynchronize(uploaded_), "cudaEventSynchronize");
    uploading_ = false;
  }
  HADAL_CHECK(staged_ + bytes <= kStaging);
  const std::size_t at = staged_;
  std::memcpy(host_ + at, data, bytes);
  staged_ = (at + bytes + kAlignment - 1) / kAlignment * kAlignment;
  entries_.push_back({at, bytes});
  return device_ + at;
}

std::byte* Recorder::scratch(std::size_t slot, std::size_t bytes) {
  if (scratch_.size() <= slot) scratch_.resize(slot + 1);
  if (scratch_[slot].size() < bytes)
    scratch_[slot] = MemoryBlock::uninitialised(std::max(bytes, 2 * scratch_[slot].size()), memory_);
  return scratch_[slot].data();
}

void Recorder::send() {
  for (const Command& command : commands_) {
    void* args = args_.data() + command.args_at;
    check(cudaLaunchKernel(command.kernel, command.grid, dim3(command.threads), &args, command.shared,
                           memory_.stream()),
          "cudaLaunchKernel");
  }
}

bool Recorder::must_wait(const Command& later, const Command& earlier) const {
  const Range* l = ranges_.data() + later.ranges;
  const Range* e = ranges_.data() + earlier.ranges;
  const auto conflict = [](const Range* a, std::uint32_t n_a, const Range* b, std::uint32_t n_b) {
    for (std::uint32_t i = 0; i < n_a; ++i) {
      for (std::uint32_t j = 0; j < n_b; ++j) {
        if (a[i].overlaps(b[j])) return true;
      }
    }
    return false;
  };
  return conflict(l, later.reads + later.writes, e + earlier.reads, earlier.writes) ||
         conflict(l + later.reads, later.writes, e, earlier.reads);
}

// Kernels that do not touch each other's memory stand side by side.
cudaGraphExec_t Recorder::make_graph() {
  cudaGraph_t graph = nullptr;
  check(cudaGraphCreate(&graph, 0), "cudaGraphCreate");
  std::vector<cudaGraphNode_t> nodes(commands_.size()), waits_for;
  // before[i]: all that i waits for, over any number of edges.
  std::vector<std::vector<bool>> before(commands_.size(), std::vector<bool>(commands_.size()));
  for (std::size_t i = 0; i < commands_.size(); ++i) {
    waits_for.clear();
    for (std::size_t j = i; j-- > 0;) {
      if (before[i][j] || !must_wait(commands_[i], commands_[j])) continue;
      waits_for.push_back(nodes[j]);
      before[i][j] = true;
      for (std::size_t k = 0; k < j; ++k) before[i][k] = before[i][k] || before[j][k];
    }
    const Command& command = commands_[i];
    void* args = args_.data() + command.args_at;
    cudaKernelNodeParams params{};
    params.func = const_cast<void*>(command.kernel);
    params.gridDim = command.grid;
    params.blockDim = dim3(command.threads);
    params.sharedMemBytes = command.shared;
    params.kernelParams = &args;
    check(cudaGraphAddKernelNode(&nodes[i], graph, waits_for.data(), waits_for.size(), &params),
          "cudaGraphAddKernelNode");
  }
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return exec;
}

std::byte* Recorder::next_scratch(std::size_t bytes) {
  return scratch(kFirstTurn + turn_++ % kTurns, bytes);
}

// The graph of what is recorded, if this is not its first time.
Recorder::Graph* Recorder::find_graph() {
  const auto same = [&](const Graph& graph) {
    return graph.args == args_ && std::equal(graph.commands.begin(), graph.commands.end(), commands_.begin(),
                                             commands_.end(), [](const Command& a, const Command& b) {
                                               return a.kernel == b.kernel && a.grid.x == b.grid.x &&
                                                      a.grid.y == b.grid.y && a.grid.z == b.grid.z &&
                                                      a.threads == b.threads && a.shared == b.shared &&
                                                      a.args_at == b.args_at;
                                             });
  };
  const auto known = std::find_if(graphs_.begin(), graphs_.end(), same);
  if (known == graphs_.end()) {
    if (graphs_.size() == kGraphs) {
      const auto oldest = std::min_element(graphs_.begin(), graphs_.end(),
                                           [](const Graph& a, const Graph& b) { return a.used < b.used; });
      if (oldest->exec != nullptr) check(cudaGraphExecDestroy(oldest->exec), "cudaGraphExecDestroy");
      graphs_.erase(oldest);
    }
    graphs_.push_back({commands_, args_, nullptr, flushes_});
    return nullptr;
  }
  known->used = flushes_;
  if (known->exec == nullptr) {
    known->exec = make_graph();
  }
  return &*known;
}

void Recorder::flush() {
  if (commands_.empty()) return;
  ++flushes_;
  if (staged_ > 0) {
    check(cudaMemcpyAsync(device_, host_, staged_, cudaMemcpyHostToDevice, memory_.stream()),
          "cudaMemcpyAsync of staged data");
    check(cudaEventRecord(uploaded_, memory_.stream()), "cudaEventRecord");
    uploading_ = true;
  }
  if (const Graph* graph = find_graph(); graph != nullptr)
    check(cudaGraphLaunch(graph->exec, memory_.stream()), "cudaGraphLaunch");
  else
    send();
  commands_.clear();
  args_.clear();
  ranges_.clear();
  derived_.clear();
  turn_ = 0;
  staged_ = 0;
  entries_.clear();
}

}  // namespace hadal::cuda
