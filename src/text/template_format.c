/* Texts by pattern: "..." % values, and dates. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "text/template_internal.h"

static enum walsh_status put_formatted(struct walsh_tpl_run *run, char kind, const struct walsh_tpl_value *v)
{
    double number;
    char text[400];
    switch (kind) {
    case 's':
        return walsh_tpl_print(run, v);
    case 'r':
        return walsh_tpl_repr(run, v, 0);
    case 'd':
    case 'i':
        if (!walsh_tpl_number(v, &number)) break;
        if (v->type == TPL_REAL && !(number > -9e18 && number < 9e18)) break;
        snprintf(text, sizeof text, "%lld", (long long)(v->type == TPL_INT ? v->u.integer : (int64_t)number));
        return walsh_tpl_puts(run, text);
    case 'f':
        if (!walsh_tpl_number(v, &number)) break;
        snprintf(text, sizeof text, "%f", number);
        return walsh_tpl_puts(run, text);
    default:
        return TPL_FAIL(run, "the format %%%c is not supported", kind);
    }
    return TPL_FAIL(run, "%%%c of a %s", kind, walsh_tpl_type_name(v));
}

enum walsh_status walsh_tpl_format(struct walsh_tpl_run *run, struct walsh_tpl_text format,
                                   const struct walsh_tpl_value *values, size_t count,
                                   struct walsh_tpl_value *out)
{
    const size_t mark = run->out.size;
    size_t used = 0;
    for (size_t at = 0; at < format.size; at++) {
        if (format.data[at] != '%') {
            WALSH_TRY(walsh_tpl_put(run, format.data + at, 1));
            continue;
        }
        if (++at == format.size) return TPL_FAIL(run, "a format ends with %%");
        if (format.data[at] == '%') {
            WALSH_TRY(walsh_tpl_put(run, "%", 1));
            continue;
        }
        if (used == count) return TPL_FAIL(run, "a format has more places than values");
        WALSH_TRY(put_formatted(run, format.data[at], &values[used++]));
    }
    if (used < count) return TPL_FAIL(run, "a format has fewer places than values");
    return walsh_tpl_take(run, mark, out);
}

/* Civil date of a count of days since 1970-01-01, by eras of 400 years (Gregorian calendar). */
static void date_of(int64_t days, struct tm *t)
{
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365};
    days += 719468; /* since 0000-03-01 */
    const int64_t era = (days >= 0 ? days : days - 146096) / 146097, day_of_era = days - era * 146097;
    const int64_t year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    const int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    const int64_t shifted = (5 * day_of_year + 2) / 153; /* month, March is 0 */
    const int64_t month = shifted < 10 ? shifted + 3 : shifted - 9;
    const int64_t year = year_of_era + era * 400 + (month <= 2);
    const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    t->tm_mday = (int)(day_of_year - (153 * shifted + 2) / 5 + 1);
    t->tm_mon = (int)month - 1;
    t->tm_year = (int)(year - 1900);
    t->tm_yday = before[t->tm_mon] + t->tm_mday - 1 + (leap && month > 2);
}

static void split_time(int64_t now, struct tm *t)
{
    int64_t days = now / 86400, seconds = now % 86400;
    if (seconds < 0) {
        seconds += 86400;
        days--;
    }
    *t = (struct tm){0};
    date_of(days, t);
    t->tm_hour = (int)(seconds / 3600);
    t->tm_min = (int)(seconds / 60 % 60);
    t->tm_sec = (int)(seconds % 60);
    t->tm_wday = (int)(((days + 4) % 7 + 7) % 7);
}

/* English names whatever the locale. `bare`: without leading zeros. */
static bool date_part(char kind, bool bare, const struct tm *t, char *text, size_t size)
{
    static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    const char *two = bare ? "%d" : "%02d";
    const int hour12 = t->tm_hour % 12 ? t->tm_hour % 12 : 12;
    switch (kind) {
    case 'Y':
        return snprintf(text, size, "%d", t->tm_year + 1900) > 0;
    case 'y':
        return snprintf(text, size, two, (t->tm_year + 1900) % 100) > 0;
    case 'm':
        return snprintf(text, size, two, t->tm_mon + 1) > 0;
    case 'd':
        return snprintf(text, size, two, t->tm_mday) > 0;
    case 'e':
        return snprintf(text, size, bare ? "%d" : "%2d", t->tm_mday) > 0;
    case 'H':
        return snprintf(text, size, two, t->tm_hour) > 0;
    case 'I':
        return snprintf(text, size, two, hour12) > 0;
    case 'M':
        return snprintf(text, size, two, t->tm_min) > 0;
    case 'S':
        return snprintf(text, size, two, t->tm_sec) > 0;
    case 'j':
        return snprintf(text, size, bare ? "%d" : "%03d", t->tm_yday + 1) > 0;
    case 'p':
        return snprintf(text, size, "%s", t->tm_hour < 12 ? "AM" : "PM") > 0;
    case 'A':
        return snprintf(text, size, "%s", days[t->tm_wday]) > 0;
    case 'a':
        return snprintf(text, size, "%.3s", days[t->tm_wday]) > 0;
    case 'B':
        return snprintf(text, size, "%s", months[t->tm_mon]) > 0;
    case 'b':
        return snprintf(text, size, "%.3s", months[t->tm_mon]) > 0;
    case 'F':
        return snprintf(text, size, "%d-%02d-%02d", t->tm_year + 1900, t->tm_mon + 1, t->tm_mday) > 0;
    case 'T':
        return snprintf(text, size, "%02d:%02d:%02d", t->tm_hour, t->tm_min, t->tm_sec) > 0;
    case '%':
        return snprintf(text, size, "%%") > 0;
    default:
        return false;
    }
}

enum walsh_status walsh_tpl_strftime(struct walsh_tpl_run *run, struct walsh_tpl_text format,
                                     struct walsh_tpl_value *out)
{
    const size_t mark = run->out.size;
    struct tm t;
    split_time(run->now, &t);
    for (size_t at = 0; at < format.size; at++) {
        char part[32];
        if (format.data[at] != '%') {
            WALSH_TRY(walsh_tpl_put(run, format.data + at, 1));
            continue;
        }
        at++;
        const bool bare = at < format.size && format.data[at] == '-';
        at += bare;
        if (at >= format.size || !date_part(format.data[at], bare, &t, part, sizeof part))
            return TPL_FAIL(run, "strftime_now: the format \"%.*s\" is not supported",
                            (int)walsh_min(format.size, 60), format.data);
        WALSH_TRY(walsh_tpl_puts(run, part));
    }
    return walsh_tpl_take(run, mark, out);
}
