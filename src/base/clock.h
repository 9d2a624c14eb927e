/* base/clock: monotonic seconds. */
#ifndef WALSH_BASE_CLOCK_H
#define WALSH_BASE_CLOCK_H

double walsh_now(void); /* CLOCK_MONOTONIC in seconds */

#endif
