# src/ops/cuda, into the room of the ops. The runtime is linked statically; only the driver must be there.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin)
endif()
set(CMAKE_CUDA_ARCHITECTURES 90a-real)  # Hopper's own instructions, no code for other GPUs
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CMake 3.25 does not know that nvcc has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")

file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/*.cu)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/*.cpp)
add_library(hadal_cuda_kernels OBJECT ${cuda_kernels})
target_include_directories(hadal_cuda_kernels PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
# As on the CPU, a product and a sum stay two roundings unless the code says fmaf.
target_compile_options(hadal_cuda_kernels PRIVATE -fmad=false --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra)
if(HADAL_WERROR)
  target_compile_options(hadal_cuda_kernels PRIVATE -Werror=all-warnings)
endif()

target_sources(hadal_ops PRIVATE ${cuda_sources} $<TARGET_OBJECTS:hadal_cuda_kernels>)
target_compile_definitions(hadal_ops PRIVATE HADAL_CUDA)
target_link_libraries(hadal_ops PRIVATE CUDA::cudart_static)
