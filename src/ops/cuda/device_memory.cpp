#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "ops/cuda/recorder.h"

namespace hadal::cuda {
namespace {

constexpr std::size_t kSlab = std::size_t{256} << 20;
constexpr std::size_t kLarge = kSlab / 4;  // from here on an allocation of the driver's own
constexpr std::size_t kPinned = std::size_t{16} << 20;

std::size_t rounded(std::size_t bytes) {
  const std::size_t unit = bytes < (std::size_t{1} << 20) ? 512 : std::size_t{1} << 16;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "hadal: %s: %s (%s)\n", call, cudaGetErrorString(status), cudaGetErrorName(status));
  std::abort();
}

DeviceMemory::DeviceMemory() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, kPinned), "cudaMallocHost");
  pinned_ = static_cast<std::byte*>(pinned);
}

DeviceMemory::~DeviceMemory() {
  cudaStreamSynchronize(stream_);
  for (void* slab : slabs_) cudaFree(slab);
  cudaFreeHost(pinned_);
  cudaStreamDestroy(stream_);
}

std::size_t DeviceMemory::available() const {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

std::byte* DeviceMemory::allocate(std::size_t bytes) {
  bytes = rounded(bytes);
  auto& free = free_[bytes];
  if (!free.empty()) {
    std::byte* at = free.back();
    free.pop_back();
    return at;
  }
  void* memory = nullptr;
  if (bytes >= kLarge) {
    if (cudaMalloc(&memory, bytes) != cudaSuccess) throw std::bad_alloc();
    return static_cast<std::byte*>(memory);
  }
  if (slab_left_ < bytes) {
    if (cudaMalloc(&memory, kSlab) != cudaSuccess) throw std::bad_alloc();
    slabs_.push_back(memory);
    slab_ = static_cast<std::byte*>(memory);
    slab_left_ = kSlab;
  }
  std::byte* at = slab_;
  slab_ += bytes;
  slab_left_ -= bytes;
  return at;
}

void DeviceMemory::release(std::byte* at, std::size_t bytes) {
  bytes = rounded(bytes);
  if (bytes < kLarge) {
    free_[bytes].push_back(at);
    return;
  }
  flush();
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  check(cudaFree(at), "cudaFree");
}

void DeviceMemory::clear(std::byte* at, std::size_t bytes) {
  flush();
  check(cudaMemsetAsync(at, 0, bytes, stream_), "cudaMemsetAsync");
}

void DeviceMemory::copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  flush();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "cudaMemcpyAsync");
}

void DeviceMemory::write(std::byte* to, const void* from_host, std::size_t bytes) {
  if (bytes == 0) return;
  flush();
  check(cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync to the device");
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

void DeviceMemory::read(void* to_host, const std::byte* from, std::size_t bytes) {
  flush();
  auto* to = static_cast<std::byte*>(to_host);
  for (std::size_t at = 0; at < bytes; at += kPinned) {
    const std::size_t part = std::min(kPinned, bytes - at);
    check(cudaMemcpyAsync(pinned_, from + at, part, cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync from the device");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    std::memcpy(to + at, pinned_, part);
  }
}

}  // namespace hadal::cuda
