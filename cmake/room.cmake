# One static library per room: hadal_room(<name> DEPS <targets>) takes every .cpp under src/<name>, links
# exactly the named rooms and libraries, and is called hadal::<name>.

function(hadal_compile_options target)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough
    # A product and a sum stay two roundings unless the code says std::fma: results must not depend on
    # what a compiler chooses to contract.
    -ffp-contract=off -fno-math-errno)
  if(HADAL_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(HADAL_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${HADAL_SANITIZE} -fno-omit-frame-pointer -g1
      -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${HADAL_SANITIZE})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # Instrumented code hides initialisation from g++'s flow analysis: its manual warns of these false alarms.
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
  endif()
endfunction()

# For code whose time is spent elsewhere, in the rooms that it calls: compiling it takes half as long.
function(hadal_optimise_little target)
  if(HADAL_SANITIZE)
    target_compile_options(${target} PRIVATE -O0)
  else()
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

function(hadal_room name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$|/ops/cuda/")
  if(NOT sources)
    message(FATAL_ERROR "room ${name} has no sources")
  endif()
  add_library(hadal_${name} STATIC ${sources})
  add_library(hadal::${name} ALIAS hadal_${name})
  target_include_directories(hadal_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(hadal_${name} PUBLIC ${ARG_DEPS})
  hadal_compile_options(hadal_${name})
  # The kernels set compiler options within their files, and are what takes long by itself.
  if(HADAL_UNITY AND NOT name STREQUAL "ops")
    set_target_properties(hadal_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # Every file's anonymous namespace is its own to g++ only while the file is compiled alone.
      target_compile_options(hadal_${name} PRIVATE -Wno-subobject-linkage)
    endif()
  endif()
  if(HADAL_FUZZ AND NOT name MATCHES "^(ops|plan|engine|cli)$")
    # Coverage, for fuzz/: of the rooms that parse. In kernels and samplers it would only cost.
    target_compile_options(hadal_${name} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
