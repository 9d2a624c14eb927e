# Fuzz targets. The ordinary tests replay their small corpora and random changes of them; with clang and -DWALSH_FUZZ=ON
# each is a libFuzzer program too: build/tests/fuzz_request -max_total_time=600 tests/fuzz/request
option(WALSH_FUZZ "Build libFuzzer programs (clang)" OFF)
function(walsh_fuzz_target name rounds)
  cmake_parse_arguments(F "" "" "SOURCES;LINK" ${ARGN})
  add_executable(fuzz_${name}_replay fuzz/${name}.c fuzz/replay.c ${F_SOURCES})
  target_link_libraries(fuzz_${name}_replay PRIVATE ${F_LINK})
  target_include_directories(fuzz_${name}_replay PRIVATE ${CMAKE_SOURCE_DIR}/app)
  add_test(NAME fuzz_${name} COMMAND fuzz_${name}_replay ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/${name} ${rounds})
  if(WALSH_FUZZ)
    add_executable(fuzz_${name} fuzz/${name}.c ${F_SOURCES})
    target_link_libraries(fuzz_${name} PRIVATE ${F_LINK})
    target_include_directories(fuzz_${name} PRIVATE ${CMAKE_SOURCE_DIR}/app)
    target_compile_options(fuzz_${name} PRIVATE -fsanitize=fuzzer,address,undefined)
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer,address,undefined)
  endif()
endfunction()

walsh_fuzz_target(request 2000 SOURCES ${CMAKE_SOURCE_DIR}/app/serve/request.c LINK walsh_flags PkgConfig::JANSSON)
