// What this machine can do, measured: the denominators of every fraction that `hadal bench` prints.
#pragma once

#include <string>

#include "base/buffer.h"
#include "base/memory.h"
#include "base/thread_pool.h"

namespace hadal {

// Reads a buffer much larger than the caches, all threads at once, each its own half in one linear stream.
class ReadBandwidth {
 public:
  // `bytes` of memory, touched now so that the first measurement does not pay for it.
  ReadBandwidth(std::size_t bytes, ThreadPool& pool);
  double measure();  // GB/s of one pass

 private:
  ThreadPool& pool_;
  Buffer<float> memory_;
};

// Of a device: copies between two halves of a buffer, bytes read and written both counted.
class CopyBandwidth {
 public:
  CopyBandwidth(std::size_t bytes, Memory& memory);
  double measure();  // GB/s of several copies

 private:
  MemoryBlock from_, to_;
};

struct ArithmeticPeaks {
  double f32_gflops = 0;   // fused multiply-adds in registers, 2 operations each
  double bf16_gflops = 0;  // BF16 dot products into float32; 0 where there is no such instruction
  double int8_gops = 0;    // byte dot products into int32, likewise
};
// Means over `seconds` of each kind, not the best instant: what else runs on the machine slows this down as
// it slows down the work that is compared with it.
ArithmeticPeaks measure_arithmetic(ThreadPool& pool, double seconds = 0.1);

}  // namespace hadal
