// HADAL_TARGET_BEGIN("avx2,fma") ... HADAL_TARGET_END: the functions between them may use these instructions
// while the rest of the file, the standard library's inline functions above all, may not.
#pragma once

#define HADAL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define HADAL_TARGET_BEGIN(features) \
  HADAL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define HADAL_TARGET_END HADAL_PRAGMA(clang attribute pop)
#else
#define HADAL_TARGET_BEGIN(features) HADAL_PRAGMA(GCC push_options) HADAL_PRAGMA(GCC target(features))
#define HADAL_TARGET_END HADAL_PRAGMA(GCC pop_options)
#endif

// In front of a loop over an array of vectors: without its full unrolling g++ keeps the array in memory.
#if defined(__clang__)
#define HADAL_UNROLL HADAL_PRAGMA(unroll)
#else
#define HADAL_UNROLL HADAL_PRAGMA(GCC unroll 16)
#endif
