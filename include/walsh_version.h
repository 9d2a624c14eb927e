/* The version of these headers; the build takes the library's from here. Semantic versioning: while MAJOR is
 * 0 a new MINOR may change what exists, a new PATCH may not. The shared library's name carries MAJOR
 * (libwalsh.so.0); within one name structs with a struct_size only grow at their ends, and enumerators keep
 * their values. CHANGELOG.md has what changed. */
#ifndef WALSH_VERSION_H
#define WALSH_VERSION_H

#define WALSH_VERSION_MAJOR 0
#define WALSH_VERSION_MINOR 1
#define WALSH_VERSION_PATCH 0
#define WALSH_VERSION_STRING "0.1.0"
#define WALSH_VERSION_DATE "2026-11-22" /* of CHANGELOG.md's entry */
/* For the preprocessor: #if WALSH_VERSION_NUMBER >= 1002 says 0.1.2 or later. */
#define WALSH_VERSION_NUMBER                                                                                 \
    (WALSH_VERSION_MAJOR * 1000000 + WALSH_VERSION_MINOR * 1000 + WALSH_VERSION_PATCH)

#endif
