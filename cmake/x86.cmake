# The x86 kernels: each instruction set is its own library with its own flags; dispatch.c picks at run time. Fuzzers are for
# what reads files: they have the reference alone, which is quick to compile with a sanitizer and exact about its bounds.
set(WALSH_X86_LIBRARIES "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT WALSH_FUZZ)
  add_compile_definitions(WALSH_X86=1)
  function(walsh_x86 isa)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/x86/${isa}/*.c)
    if(sources)
      add_library(walsh_x86_${isa} STATIC ${sources})
      target_compile_options(walsh_x86_${isa} PRIVATE ${ARGN})
      target_link_libraries(walsh_x86_${isa} PUBLIC walsh_formats)
      set(WALSH_X86_LIBRARIES ${WALSH_X86_LIBRARIES} walsh_x86_${isa} PARENT_SCOPE)
    endif()
  endfunction()
  # avx2: Haswell and later. avx512: F, BW, DQ, VL. vnni: Ice Lake / Zen 4 and later (VNNI, VBMI, GFNI). bf16: AVX512_BF16.
  # amx: Sapphire Rapids and later; its tile instructions are inline assembly.
  walsh_x86(avx2 -mavx2 -mfma -mf16c -mbmi2)
  walsh_x86(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mbmi2)
  walsh_x86(vnni -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mgfni -mavx2 -mfma -mf16c -mbmi2)
  walsh_x86(bf16 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx2 -mfma -mf16c -mbmi2)
  set(WALSH_AMX_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mavx512bf16 -mgfni -mavx2 -mfma -mf16c -mbmi2)
  walsh_x86(amx ${WALSH_AMX_FLAGS})
endif()
