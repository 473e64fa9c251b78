/* Wall-clock time of one process, set from outside: preloaded into Envoy by tests, never part of the product.
 *
 * TOLLGATE_CLOCK names a file of eight bytes, a native int64: nanoseconds since 1970 at which the wall clock stands still, or 0 for
 * the real time. The file is mapped, so a test that writes to it moves the clock at once. Every other clock stays real: timers run.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *now_ns;

__attribute__((constructor)) static void map_clock(void) {
    const char *path = getenv("TOLLGATE_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) abort(); /* a test at the wrong time would be worse than none */
    now_ns = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int64_t ns = now_ns && clock == CLOCK_REALTIME ? *now_ns : 0;
    if (ns == 0) return (int)syscall(SYS_clock_gettime, clock, time);
    time->tv_sec = ns / 1000000000;
    time->tv_nsec = ns % 1000000000;
    return 0;
}
