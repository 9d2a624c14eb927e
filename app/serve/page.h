/* serve/page: the chat page, put into the program by the build (cmake/embed.cmake). */
#ifndef WALSH_SERVE_PAGE_H
#define WALSH_SERVE_PAGE_H

#include <stddef.h>

extern const unsigned char page_html[];
extern const size_t page_size;

#endif
