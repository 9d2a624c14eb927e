# What users of the library meet: the headers alone, the symbols that libwalsh.so exports, an installation and what is built
# against it.
add_test(NAME install_headers COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/install/headers.sh ${CMAKE_C_COMPILER} ${CMAKE_SOURCE_DIR})
if(WALSH_LIBRARY_BUILT)
  add_test(NAME install_symbols COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/install/symbols.sh ${CMAKE_C_COMPILER}
    ${CMAKE_SOURCE_DIR} $<TARGET_FILE:walsh_shared> $<TARGET_OBJECTS:walsh> COMMAND_EXPAND_LISTS)
  add_test(NAME install_tree COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/install/tree.sh ${CMAKE_C_COMPILER} ${CMAKE_SOURCE_DIR}
    ${CMAKE_BINARY_DIR})
  if(CMAKE_C_COMPILER_ID STREQUAL "GNU") # one compiler's packages are enough
    add_test(NAME install_deb COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/install/deb.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
    set_tests_properties(install_deb PROPERTIES SKIP_RETURN_CODE 77)
  endif()
endif()
