# The kernels and their tests alone, for a processor whose libraries are not installed: {fmt} and tl::expected are
# headers here and GoogleTest is Debian's sources.
add_library(fmt::fmt INTERFACE IMPORTED)
target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY)
hadal_room(base DEPS fmt::fmt Threads::Threads)
hadal_room(tensor DEPS hadal::base)
hadal_room(ops DEPS hadal::tensor)

enable_testing()
include(GoogleTest)
add_subdirectory(/usr/src/googletest googletest EXCLUDE_FROM_ALL)
foreach(noun backends hard_cases index int8_tiles small_ops)
  add_executable(ops_${noun}_test tests/ops/${noun}_test.cpp)
  target_link_libraries(ops_${noun}_test PRIVATE hadal::ops GTest::gtest_main)
  hadal_compile_options(ops_${noun}_test)
  gtest_discover_tests(ops_${noun}_test PROPERTIES LABELS unit DISCOVERY_TIMEOUT 60 DISCOVERY_MODE PRE_TEST
    TEST_PREFIX ops/${noun}.)
endforeach()
