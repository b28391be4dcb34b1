// Memory of a thread for one purpose, kept from call to call.
#pragma once

#include <cstdint>

#include "base/buffer.h"

namespace hadal::cpu {

// At least n elements, uninitialised; kWhich tells uses apart that live at the same time.
template <class T, int kWhich>
T* scratch(std::int64_t n) {
  static thread_local Buffer<T> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < n)
    buffer = Buffer<T>::uninitialised(static_cast<std::size_t>(n));
  return buffer.data();
}

}  // namespace hadal::cpu
