/* Who holds CPython's lock for how long, exactly: preloaded, this hears of every time that a thread takes or drops it.

   cc -shared -fPIC -O2 lock_holds.c -o lock_holds.so -ldl; LD_PRELOAD=./lock_holds.so python ...

CPython signals one condition variable when a thread has taken its lock, and another when one drops it (switch_cond and
cond of Python/ceval_gil.h, 3.9 to 3.13). Nothing else that it signals lies in _PyRuntime, and the first one ever
signalled is of the first kind. A hold is timed by two clocks: that on the wall, which goes on while the holder waits
for a core, and the holder's own. Only the holder touches the figures, so they need no lock of their own. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <time.h>

#define LABELS 8

/* Nanoseconds; over: holds of more than a millisecond of the holder's own time. */
struct figures { long long holds, wall, cpu, longest_wall, longest_cpu, over; };

static struct figures figures[LABELS];
static __thread int label;
static pthread_cond_t *taken, *dropped;
static long long taken_wall, taken_cpu;
static int counting;
static int (*signal_really)(pthread_cond_t *);
static char *runtime;
static size_t runtime_size;

static long long now(clockid_t clock)
{
    struct timespec value;
    clock_gettime(clock, &value);
    return value.tv_sec * 1000000000LL + value.tv_nsec;
}

/* For the calling thread from now on. */
void lock_holds_label(int number) { label = number; }

/* Count from nothing. Call with the lock held. */
void lock_holds_begin(void)
{
    for (int i = 0; i < LABELS; i++) figures[i] = (struct figures){0};
    counting = 1;
}

/* Figures of so many labels. Call with the lock held. */
void lock_holds_end(struct figures *result)
{
    counting = 0;
    for (int i = 0; i < LABELS; i++) result[i] = figures[i];
}

static void count_hold(void)
{
    long long wall = now(CLOCK_MONOTONIC) - taken_wall, cpu = now(CLOCK_THREAD_CPUTIME_ID) - taken_cpu;
    struct figures *f = &figures[label];
    f->holds++;
    f->wall += wall;
    f->cpu += cpu;
    if (wall > f->longest_wall) f->longest_wall = wall;
    if (cpu > f->longest_cpu) f->longest_cpu = cpu;
    if (cpu > 1000000) f->over++;}

static void look_for_runtime(void)
{
    Dl_info info;
    ElfW(Sym) *symbol = 0;
    signal_really = (int (*)(pthread_cond_t *))dlvsym(RTLD_NEXT, "pthread_cond_signal", "GLIBC_2.3.2");
    if (!signal_really) signal_really = (int (*)(pthread_cond_t *))dlsym(RTLD_NEXT, "pthread_cond_signal");
    runtime = dlsym(RTLD_DEFAULT, "_PyRuntime");
    if (runtime && dladdr1(runtime, &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol) runtime_size = symbol->st_size;
}

int pthread_cond_signal(pthread_cond_t *cond)
{
    if (!signal_really) look_for_runtime();
    if ((char *)cond >= runtime && (char *)cond < runtime + runtime_size) {
        if (!taken) taken = cond;
        else if (cond != taken) dropped = cond;
        if (counting && cond == dropped && taken_wall) count_hold();
        if (counting && cond == taken) {
            taken_cpu = now(CLOCK_THREAD_CPUTIME_ID);
            taken_wall = now(CLOCK_MONOTONIC);
        }
    }
    return signal_really(cond);
}
