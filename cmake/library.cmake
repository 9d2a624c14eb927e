# The library for other programs: libwalsh.so.0 and libwalsh.a with the headers, a pkg-config file and a CMake package. The
# program and the tests link the layers themselves. A sanitizer's build has none: who links it would need the sanitizer.
set(WALSH_LIBRARY_BUILT OFF)
if(WALSH_SANITIZE)
  return()
endif()
set(WALSH_LIBRARY_BUILT ON)
include(CMakePackageConfigHelpers)

set(walsh_objects)
foreach(layer base rotation formats kernels text checkpoint cache model runtime quantize train api)
  list(APPEND walsh_objects $<TARGET_OBJECTS:walsh_${layer}>)
endforeach()
foreach(library ${WALSH_X86_LIBRARIES})
  list(APPEND walsh_objects $<TARGET_OBJECTS:${library}>)
endforeach()
set(walsh_modules jansson libpcre2-8 libutf8proc libxxhash libcrypto lapacke openblas)
set(walsh_dependencies PkgConfig::JANSSON PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::XXHASH PkgConfig::LIBCRYPTO
  PkgConfig::LAPACKE PkgConfig::OPENBLAS Threads::Threads ${CMAKE_DL_LIBS} m)

set(walsh_map ${CMAKE_SOURCE_DIR}/cmake/libwalsh.map)
add_library(walsh_shared SHARED ${walsh_objects})
target_link_options(walsh_shared PRIVATE -Wl,--version-script=${walsh_map} -Wl,--no-undefined)
set_target_properties(walsh_shared PROPERTIES LINK_DEPENDS ${walsh_map} VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR})
add_library(walsh_static STATIC ${walsh_objects})
foreach(target walsh_shared walsh_static)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME walsh LINKER_LANGUAGE C
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_link_libraries(${target} PRIVATE ${walsh_dependencies})
  target_include_directories(${target} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()
set_target_properties(walsh_shared PROPERTIES EXPORT_NAME walsh)
set_target_properties(walsh_static PROPERTIES EXPORT_NAME static)

# find_package(walsh) gives walsh::walsh; find_package(walsh COMPONENTS static) walsh::static too.
set(walsh_package ${CMAKE_INSTALL_LIBDIR}/cmake/walsh)
install(TARGETS walsh_shared EXPORT walsh
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT development)
install(TARGETS walsh_static EXPORT walsh_static
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(EXPORT walsh NAMESPACE walsh:: FILE walshTargets.cmake DESTINATION ${walsh_package} COMPONENT development)
install(EXPORT walsh_static NAMESPACE walsh:: FILE walshStaticTargets.cmake DESTINATION ${walsh_package}
  COMPONENT development)
configure_package_config_file(cmake/walshConfig.cmake.in ${CMAKE_BINARY_DIR}/package/walshConfig.cmake
  INSTALL_DESTINATION ${walsh_package})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/package/walshConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/package/walshConfig.cmake ${CMAKE_BINARY_DIR}/package/walshConfigVersion.cmake
  DESTINATION ${walsh_package} COMPONENT development)

# The prefix follows from where the file is, so that a tree that is moved, or installed with another prefix, still works.
file(RELATIVE_PATH walsh_prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" walsh_prefix_from_pc "${walsh_prefix_from_pc}")
list(JOIN walsh_modules " " walsh_requires)
configure_file(cmake/walsh.pc.in ${CMAKE_BINARY_DIR}/package/walsh.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/package/walsh.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)
file(GLOB walsh_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/include/*.h)
install(FILES ${walsh_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
