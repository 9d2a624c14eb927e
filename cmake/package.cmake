# What `tools/deb.sh` (make deb) packs that a plain installation has not: the library below Debian's multiarch directory,
# whatever `make install` uses.
if(WALSH_LIBRARY_BUILT AND CMAKE_LIBRARY_ARCHITECTURE)
  walsh_install_library(lib/${CMAKE_LIBRARY_ARCHITECTURE} _debian EXCLUDE_FROM_ALL)
endif()
