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

# The AMX kernels with emulated tiles (src/kernels/x86/amx/tiles.h), which any machine with VNNI, VBMI and GFNI can run. Their
# objects stand in front of the libraries, which hold the same names. It leaves out what walsh_checker has, and as a test the
# ops, half a minute of emulation: `walsh_checker_amx --kernel op_` checks them over tiles.
if(WALSH_AMX_FLAGS)
  file(GLOB amx_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/x86/amx/*.c)
  add_executable(walsh_checker_amx ${checker_sources} ${amx_sources})
  set_source_files_properties(${amx_sources} PROPERTIES COMPILE_OPTIONS "${WALSH_AMX_FLAGS}"
    COMPILE_DEFINITIONS WALSH_AMX_EMULATED)
  target_compile_definitions(walsh_checker_amx PRIVATE CHECKER_AMX_EMULATED)
  target_link_libraries(walsh_checker_amx PRIVATE walsh_kernels)
  add_test(NAME walsh_checker_amx COMMAND walsh_checker_amx --kernels-only)
  set_tests_properties(walsh_checker_amx PROPERTIES SKIP_RETURN_CODE 77)
endif()
