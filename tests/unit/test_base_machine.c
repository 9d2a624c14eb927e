/* Available memory from the kernel's texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/machine.h"

static void meminfo(void **state)
{
    (void)state;
    assert_int_equal(
        walsh_meminfo_available("MemTotal:       24000 kB\nMemFree:  10 kB\nMemAvailable:   123 kB\nX: 1\n"),
        123 * 1024);
    assert_true(walsh_meminfo_available("MemTotal:       24000 kB\n") == UINT64_MAX);
    assert_true(walsh_meminfo_available("") == UINT64_MAX);
}

static void cgroups(void **state)
{
    (void)state;
    const char *stat = "anon 100\nfile 900\ninactive_file 300\nactive_file 200\n";
    assert_true(walsh_cgroup_available("max\n", "1000\n", stat) == UINT64_MAX);
    assert_int_equal(walsh_cgroup_available("5000\n", "1000\n", stat), 4500); /* page cache can go */
    assert_int_equal(walsh_cgroup_available("5000\n", "1000\n", ""), 4000);
    assert_int_equal(walsh_cgroup_available("5000\n", "6000\n", ""), 0);
    assert_int_equal(walsh_cgroup_available("5000\n", "400\n", stat), 5000);
}

static void this_machine(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    assert_true(walsh_memory_available() > 1 << 20);
    assert_int_equal(walsh_memory_check("a page", 4096, &err), WALSH_OK);
    assert_int_equal(walsh_memory_check("an exbibyte", UINT64_C(1) << 60, &err), WALSH_E_MEMORY);
    assert_ptr_equal(strstr(err.message, "an exbibyte needs 1099511627776.0 MiB, this machine has "),
                     err.message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(meminfo),
        cmocka_unit_test(cgroups),
        cmocka_unit_test(this_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
