# cmake -DLIST=FILE -DROOT=DIR -DCOMPILER=TEXT -DOUT=HEADER -P build_key.cmake
# A header with WALSH_BUILD_KEY: a SHA-256 over the compiler, its flags and every source file named in LIST (relative to ROOT),
# so that builds that may compute other bits have other keys.
cmake_minimum_required(VERSION 3.25)
file(STRINGS "${LIST}" sources)
set(text "${COMPILER}\n")
foreach(source ${sources})
  file(SHA256 "${ROOT}/${source}" hash)
  string(APPEND text "${source} ${hash}\n")
endforeach()
string(SHA256 key "${text}")
file(WRITE "${OUT}" "#define WALSH_BUILD_KEY \"${key}\"\n")
