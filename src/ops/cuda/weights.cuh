// Weights and rows as kernels see them.
#pragma once

#include <cuda_fp16.h>

#include "ops/cuda/device.cuh"
#include "ops/linear.h"

namespace hadal::cuda {

struct DeviceLinear {
  const std::uint8_t* weight;
  const std::uint8_t* scale;
  std::int64_t out, in;
  std::int64_t format;  // Linear::Format
};

inline DeviceLinear device_linear(const Linear& w) {
  return {reinterpret_cast<const std::uint8_t*>(w.weight), w.scale, w.out, w.in,
          static_cast<std::int64_t>(w.format)};
}
inline DeviceRowShape device_shape(const RowShape& shape) {
  return {shape.format, static_cast<int>(shape.dim), static_cast<int>(shape.codes()),
          static_cast<int>(shape.rope_at()), shape.bytes()};
}

// One weight, exactly.
__device__ inline float weight_at(const DeviceLinear& w, std::int64_t row, std::int64_t k) {
  const std::int64_t at = row * w.in + k;
  switch (static_cast<Linear::Format>(w.format)) {
    case Linear::Format::f32:
      return reinterpret_cast<const float*>(w.weight)[at];
    case Linear::Format::f16:
      return __half2float(reinterpret_cast<const __half*>(w.weight)[at]);
    case Linear::Format::bf16:
      return from_bf16(reinterpret_cast<const std::uint16_t*>(w.weight)[at]);
    case Linear::Format::fp8:
      return e4m3(w.weight[at]) * e8m0(w.scale[row / 128 * ((w.in + 127) / 128) + k / 128]);
    case Linear::Format::fp4: {
      const unsigned pair = w.weight[at / 2];
      return e2m1(k % 2 == 0 ? pair & 15 : pair >> 4) * e8m0(w.scale[row * (w.in / 32) + k / 32]);
    }
  }
  return 0;
}

}  // namespace hadal::cuda
