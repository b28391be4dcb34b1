#include "train/matrix_product.h"

#include <algorithm>

#include "base/check.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

constexpr std::int64_t kBlockRows = 48;  // of C per task

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class T>
T* grow(Buffer<T>& buffer, std::int64_t n) {
  if (static_cast<std::int64_t>(buffer.size()) < n)
    buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
  return buffer.data();
}

template <class Body>
void for_range(ThreadPool* pool, std::int64_t n, std::int64_t grain, Body&& body) {
  if (pool != nullptr) {
    pool->parallel_for(n, grain, body);
  } else {
    body(std::int64_t{0}, n);
  }
}

}  // namespace

// Columns past the last one of B, and the odd k at the end, are zero.
void MatrixProduct::pack_panel(const Args& p, std::int64_t panel) {
  const std::int64_t width = kernels_.product_columns, first = panel * width;
  const std::int64_t columns = std::min(width, p.columns - first);
  const std::int64_t row_step = p.b_transposed ? 1 : p.columns, column_step = p.b_transposed ? p.depth : 1;
  const float* b = p.b + first * column_step;
  const auto pack = [&](auto* out, std::int64_t pairs, auto&& convert) {
    // k in blocks, so that what a transposing walk touches stays in the first-level cache.
    constexpr std::int64_t kDepthBlock = 32;
    const std::int64_t depth = round_up(p.depth, pairs);
    if (columns < width || depth > p.depth)
      std::fill_n(out, depth * width, typename std::remove_pointer_t<decltype(out)>{});
    for (std::int64_t k0 = 0; k0 < p.depth; k0 += kDepthBlock) {
      const std::int64_t k1 = std::min(k0 + kDepthBlock, p.depth);
      if (p.b_transposed) {
        for (std::int64_t j = 0; j < columns; ++j) {
          for (std::int64_t k = k0; k < k1; ++k)
            out[(k / pairs * width + j) * pairs + k % pairs] = convert(b[j * column_step + k]);
        }
      } else {
        for (std::int64_t k = k0; k < k1; ++k) {
          for (std::int64_t j = 0; j < columns; ++j)
            out[(k / pairs * width + j) * pairs + k % pairs] = convert(b[k * row_step + j]);
        }
      }
    }
  };
  if (precision_ == Precision::f32) {
    pack(panels_.data() + panel * p.depth * width, 1, [](float x) { return x; });
  } else if (kernels_.product_bf16 != nullptr) {
    pack(panels_bf16_.data() + panel * round_up(p.depth, 2) * width, 2,
         [](float x) { return f32_to_bf16(x); });
  } else {
    pack(panels_.data() + panel * p.depth * width, 1, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
  }
}

void MatrixProduct::multiply_block(const Args& p, std::int64_t row_block, std::int64_t panel) {
  const std::int64_t width = kernels_.product_columns;
  const std::int64_t row = row_block * kBlockRows, column = panel * width;
  cpu::ProductArgs args;
  args.depth = p.depth;
  args.a_stride = p.depth;
  args.c = p.c + row * p.columns + column;
  args.c_stride = p.columns;
  args.rows = std::min(kBlockRows, p.rows - row);
  args.columns = std::min(width, p.columns - column);
  args.alpha = p.alpha;
  args.beta = p.beta;
  args.add = p.add != nullptr ? p.add + row * p.columns + column : nullptr;
  if (precision_ == Precision::bf16 && kernels_.product_bf16 != nullptr) {
    args.depth = args.a_stride = round_up(p.depth, 2);
    args.a = rounded_bf16_.data() + row * args.a_stride;
    args.panel = panels_bf16_.data() + panel * args.depth * width;
    kernels_.product_bf16(args);
  } else {
    args.a = (precision_ == Precision::bf16 ? rounded_.data() : p.a) + row * args.a_stride;
    args.panel = panels_.data() + panel * args.depth * width;
    kernels_.product(args);
  }
  if (!p.symmetric) return;
  for (std::int64_t j = std::max(column, row + args.rows); j < column + args.columns; ++j) {
    for (std::int64_t i = row; i < row + args.rows; ++i) p.c[j * p.columns + i] = p.c[i * p.columns + j];
  }
}

void MatrixProduct::run(const Args& p, ThreadPool* pool) {
  HADAL_CHECK(!p.symmetric || p.rows == p.columns);
  const std::int64_t width = kernels_.product_columns, panels = (p.columns + width - 1) / width;
  const bool bf16 = precision_ == Precision::bf16, dot = bf16 && kernels_.product_bf16 != nullptr;
  if (dot) {
    const std::int64_t stride = round_up(p.depth, 2);
    std::uint16_t* a = grow(rounded_bf16_, p.rows * stride);
    grow(panels_bf16_, panels * width * stride);
    for_range(pool, p.rows, kBlockRows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t k = 0; k < p.depth; ++k) a[i * stride + k] = f32_to_bf16(p.a[i * p.depth + k]);
        if (stride > p.depth) a[i * stride + p.depth] = 0;
      }
    });
  } else {
    grow(panels_, panels * width * p.depth);
    if (bf16) {
      float* a = grow(rounded_, p.rows * p.depth);
      for_range(pool, p.rows * p.depth, 4096, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) a[i] = bf16_to_f32(f32_to_bf16(p.a[i]));
      });
    }
  }
  for_range(pool, panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t panel = begin; panel < end; ++panel) pack_panel(p, panel);
  });
  const std::int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
  for_range(pool, panels * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t panel = task / blocks, block = task % blocks;
      // Symmetric: what lies wholly below the diagonal is some other block's mirror image.
      if (p.symmetric && block * kBlockRows >= std::min((panel + 1) * width, p.columns)) continue;
      multiply_block(p, block, panel);
    }
  });
}

}  // namespace hadal
