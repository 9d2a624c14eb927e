# The checker: every kernel implementation against the scalar reference (tests/checker/checker.h).
file(GLOB checker_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/checker/*.c)
add_executable(walsh_checker ${checker_sources})
target_link_libraries(walsh_checker PRIVATE walsh_kernels)
add_test(NAME walsh_checker COMMAND walsh_checker)
