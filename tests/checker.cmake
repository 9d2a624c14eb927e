# The checker: every kernel implementation against the scalar reference (tests/checker/checker.h).
file(GLOB checker_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/checker/*.c)
add_executable(walsh_checker ${checker_sources})
target_link_libraries(walsh_checker PRIVATE walsh_kernels)
# The ops of the CUDA module too, where it is built and a device is there.
if(TARGET walsh-cuda)
  add_dependencies(walsh_checker walsh-cuda)
  add_test(NAME walsh_checker COMMAND walsh_checker --module $<TARGET_FILE:walsh-cuda>)
else()
  add_test(NAME walsh_checker COMMAND walsh_checker)
endif()
