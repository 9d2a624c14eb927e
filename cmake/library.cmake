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

# Not Requires.private, which would want the development packages of all of them from who links the shared library.
set(walsh_private ${JANSSON_LIBRARIES} ${PCRE2_LIBRARIES} ${UTF8PROC_LIBRARIES} ${XXHASH_LIBRARIES} ${LIBCRYPTO_LIBRARIES}
  ${LAPACKE_LIBRARIES} ${OPENBLAS_LIBRARIES})
list(TRANSFORM walsh_private PREPEND -l)
list(JOIN walsh_private " " walsh_private)
file(GLOB walsh_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/include/*.h)

# Install the library below `libdir`, in the components library${suffix} and development${suffix}. find_package(walsh) gives
# walsh::walsh; find_package(walsh COMPONENTS static) walsh::static too. Prefixes follow from where the files are, so that a tree
# that is moved, or installed with another prefix, still works.
function(walsh_install_library libdir suffix)
  set(package ${libdir}/cmake/walsh)
  set(files ${CMAKE_BINARY_DIR}/package${suffix})
  set(runtime COMPONENT library${suffix} ${ARGN})
  set(development COMPONENT development${suffix} ${ARGN})
  install(TARGETS walsh_shared EXPORT walsh${suffix}
    LIBRARY DESTINATION ${libdir} ${runtime} NAMELINK_COMPONENT development${suffix})
  install(TARGETS walsh_static EXPORT walsh_static${suffix} ARCHIVE DESTINATION ${libdir} ${development})
  install(EXPORT walsh${suffix} NAMESPACE walsh:: FILE walshTargets.cmake DESTINATION ${package} ${development})
  install(EXPORT walsh_static${suffix} NAMESPACE walsh:: FILE walshStaticTargets.cmake DESTINATION ${package} ${development})
  configure_package_config_file(cmake/walshConfig.cmake.in ${files}/walshConfig.cmake INSTALL_DESTINATION ${package})
  write_basic_package_version_file(${files}/walshConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${files}/walshConfig.cmake ${files}/walshConfigVersion.cmake DESTINATION ${package} ${development})
  string(REGEX REPLACE "[^/]+" ".." up ${libdir}/pkgconfig)
  set(walsh_libdir ${libdir})
  set(walsh_prefix ${up})
  configure_file(cmake/walsh.pc.in ${files}/walsh.pc @ONLY)
  install(FILES ${files}/walsh.pc DESTINATION ${libdir}/pkgconfig ${development})
  install(FILES ${walsh_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} ${development})
  if(WALSH_CUDA_BUILT)
    install(TARGETS walsh-cuda LIBRARY DESTINATION ${libdir}/walsh OPTIONAL ${runtime})
  endif()
endfunction()
walsh_install_library(${CMAKE_INSTALL_LIBDIR} "")
