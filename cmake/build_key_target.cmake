# walsh_build_key.h for src/runtime: what may change a bit of a computed key or value. The header is made anew when one of the
# sources changes; only what includes it is then compiled again.
file(GLOB_RECURSE key_sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR}
  src/base/*.[ch] src/rotation/*.[ch] src/formats/*.[ch] src/kernels/*.[ch] src/kernels/*.inc src/kernels/*.def src/kernels/*.cu src/kernels/*.cuh
  src/checkpoint/*.[ch] src/cache/*.[ch] src/model/*.[ch] src/runtime/*.[ch])
list(APPEND key_sources CMakeLists.txt cmake/x86.cmake)
list(SORT key_sources)
string(REPLACE ";" "\n" key_list "${key_sources}")
set(key_directory ${CMAKE_BINARY_DIR}/build_key)
file(CONFIGURE OUTPUT ${key_directory}/sources.txt CONTENT "${key_list}\n")
string(TOUPPER "${CMAKE_BUILD_TYPE}" key_type)
set(key_compiler "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION} ${CMAKE_SYSTEM_PROCESSOR} ${CMAKE_C_FLAGS} ${CMAKE_C_FLAGS_${key_type}} ${CMAKE_BUILD_TYPE} ${WALSH_SANITIZE}")
set(key_paths ${key_sources})
list(TRANSFORM key_paths PREPEND ${CMAKE_SOURCE_DIR}/)
add_custom_command(OUTPUT ${key_directory}/walsh_build_key.h
  COMMAND ${CMAKE_COMMAND} -DLIST=${key_directory}/sources.txt -DROOT=${CMAKE_SOURCE_DIR} -DCOMPILER=${key_compiler}
    -DOUT=${key_directory}/walsh_build_key.h -P ${CMAKE_SOURCE_DIR}/cmake/build_key.cmake
  DEPENDS ${key_paths} ${key_directory}/sources.txt ${CMAKE_SOURCE_DIR}/cmake/build_key.cmake
  COMMENT "Hashing the sources" VERBATIM)
target_sources(walsh_runtime PRIVATE ${key_directory}/walsh_build_key.h)
target_include_directories(walsh_runtime PRIVATE ${key_directory})
