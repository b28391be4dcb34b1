// A decode step allocates nothing: what it needs is kept from the steps before. Counted by standing in front
// of the C library's allocator, which operator new and Buffer both end in.
#include <atomic>
#include <cstdlib>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "golden_data.h"
#include "model/transformer.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HADAL_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HADAL_SANITIZED 1
#endif
#if defined(__GLIBC__) && !defined(HADAL_SANITIZED)
#define HADAL_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<std::int64_t> g_allocations{0};
}  // namespace

#if defined(HADAL_COUNTS_ALLOCATIONS)
extern "C" {
// The C library's own names for what is replaced here. NOLINTBEGIN(bugprone-reserved-identifier)
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t n, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
// NOLINTEND(bugprone-reserved-identifier)

void* malloc(std::size_t size) {
  ++g_allocations;
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  ++g_allocations;
  return __libc_calloc(n, size);
}
void* realloc(void* memory, std::size_t size) {
  ++g_allocations;
  return __libc_realloc(memory, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++g_allocations;
  return __libc_memalign(alignment, size);
}
}
#endif

namespace hadal {
namespace {

class DecodeAllocations : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
#if !defined(HADAL_COUNTS_ALLOCATIONS)
    GTEST_SKIP() << "a sanitizer, or another C library, owns the allocator";
#endif
    ThreadPool pool(1);
    if (!make_backend("cpu", GetParam(), pool)) GTEST_SKIP() << "not on this machine";
  }
  // Allocations of each decode step from a little behind position 2 * kPageTokens to the end of that page.
  std::vector<std::int64_t> steps_on(int threads) {
    std::vector<std::int64_t> steps;
    const auto model = Model::load(test::reference_directory() / "models" / "t1-m2");
    EXPECT_TRUE(model.has_value());
    ThreadPool pool(threads);
    auto backend = make_backend("cpu", GetParam(), pool);
    if (!model || !backend) return steps;
    Transformer transformer(*model, **backend, Numerics::official);
    SequenceState state(model->state_layout());
    const auto read = [&](std::int64_t count) {
      std::vector<std::int32_t> tokens;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t id = (state.length() + i) * 7919 % model->config().vocab_size;
        tokens.push_back(static_cast<std::int32_t>(id));
      }
      const BatchItem item{&state, tokens, BatchItem::Logits::last};
      const std::int64_t before = g_allocations;
      EXPECT_TRUE(transformer.forward({&item, 1}).has_value());
      return g_allocations - before;
    };
    EXPECT_GT(read(2 * kPageTokens + 1), 0) << "a prompt needs scratch memory: does the counter count?";
    for (int warm_up = 0; warm_up < 6; ++warm_up) read(1);
    while (state.length() < 3 * kPageTokens) steps.push_back(read(1));
    EXPECT_GT(read(1), 0) << "the first token of a page allocates the page";
    return steps;
  }
};

TEST_P(DecodeAllocations, NoneOnOneThread) {
  const auto steps = steps_on(1);
  EXPECT_EQ(std::accumulate(steps.begin(), steps.end(), std::int64_t{0}), 0);
}

TEST_P(DecodeAllocations, OnSeveralThreadsOnlyTheFirstTouchOfAThreadsScratch) {
  // A thread that the system left out so far meets an op for the first time and takes its scratch memory
  // then, whichever step that is; half of the steps at the very least are without.
  const auto steps = steps_on(2);
  EXPECT_LE(std::accumulate(steps.begin(), steps.end(), std::int64_t{0}), 16);
}

INSTANTIATE_TEST_SUITE_P(Isa, DecodeAllocations,
                         testing::Values("avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2", "scalar"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace hadal
