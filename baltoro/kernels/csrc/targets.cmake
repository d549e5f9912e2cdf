# Every target is compiled with its own flags and chosen at run time, so that one build runs on any CPU of its
# architecture. No contraction: a sum must not depend on which loop the compiler fused.
include(CheckCXXCompilerFlag)
set(_csrc ${CMAKE_CURRENT_LIST_DIR})

function(baltoro_kernels program)
  target_sources(${program} PRIVATE ${_csrc}/attention.cpp ${_csrc}/dispatch.cpp ${_csrc}/latents.cpp ${_csrc}/norm.cpp ${_csrc}/pack.cpp ${_csrc}/plain.cpp
                                    ${_csrc}/products.cpp ${_csrc}/roof.cpp ${_csrc}/routing.cpp ${_csrc}/step.cpp
                                    ${_csrc}/threads.cpp ${_csrc}/training.cpp ${_csrc}/targets/scalar.cpp)
  if(NOT WIN32)  # pread, O_DIRECT
    target_sources(${program} PRIVATE ${_csrc}/reader.cpp ${_csrc}/reader_threads.cpp ${_csrc}/reader_uring.cpp)
  endif()
  target_compile_features(${program} PRIVATE cxx_std_20)
  target_link_libraries(${program} PRIVATE Threads::Threads)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    return()
  endif()
  target_compile_options(${program} PRIVATE -Wall -Wextra -ffp-contract=off)
  set_source_files_properties(${_csrc}/targets/scalar.cpp TARGET_DIRECTORY ${program} PROPERTIES COMPILE_OPTIONS "-O3")
  if(CMAKE_CXX_COMPILER MATCHES "aarch64" OR CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    target_sources(${program} PRIVATE ${_csrc}/targets/neon.cpp)
    target_compile_definitions(${program} PRIVATE BALTORO_ARM64)
    set_source_files_properties(${_csrc}/targets/neon.cpp TARGET_DIRECTORY ${program} PROPERTIES
                                COMPILE_OPTIONS "-O3;-march=armv8.2-a+dotprod")
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
    set(avx2 -O3 -mavx2 -mfma -mf16c)
    set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx512vbmi)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC bug 105593: its own AVX-512 header warns
      list(APPEND avx512 -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    target_sources(${program} PRIVATE ${_csrc}/targets/avx2.cpp ${_csrc}/targets/avx512.cpp)
    check_cxx_compiler_flag(-mamx-int8 _has_amx)  # GCC 11, Clang 12
    if(_has_amx AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
      target_sources(${program} PRIVATE ${_csrc}/targets/amx.cpp)
      target_compile_definitions(${program} PRIVATE BALTORO_AMX)
      set_source_files_properties(${_csrc}/targets/amx.cpp TARGET_DIRECTORY ${program} PROPERTIES
                                  COMPILE_OPTIONS "${avx512};-mamx-tile;-mamx-int8;-mamx-bf16")
    endif()
    target_compile_definitions(${program} PRIVATE BALTORO_X86)
    set_source_files_properties(${_csrc}/targets/avx2.cpp TARGET_DIRECTORY ${program} PROPERTIES
                                COMPILE_OPTIONS "${avx2}")
    set_source_files_properties(${_csrc}/targets/avx512.cpp TARGET_DIRECTORY ${program} PROPERTIES
                                COMPILE_OPTIONS "${avx512}")
  endif()
endfunction()
