/* What everything rests on: the lock, contexts, handles, faults that were ordered, violations, counters. */
#define _GNU_SOURCE
#include "standin.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 32
#define MAX_FAULTS 16
#define MAX_COUNTERS 256
#define TEXT_BYTES (1 << 16)
#define FIRST_HANDLE 0x10000

pthread_mutex_t standin_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t standin_moved = PTHREAD_COND_INITIALIZER;
CUresult standin_broken = CUDA_SUCCESS;

static int initialised, retained;
static char violations[TEXT_BYTES];
static size_t violations_used;
static int violations_count;

static struct {
    const char *name;
    long count;
} counters[MAX_COUNTERS];

static struct {
    char name[64];
    int after, times; /* calls that still succeed; calls that then fail, -1 for all */
    CUresult code;
} faults[MAX_FAULTS];

static Object **objects;
static size_t object_count, object_room;

/* The stack of current contexts, one for each thread. There is one context, the device's primary one. */
static pthread_key_t depth_key;
static pthread_once_t depth_once = PTHREAD_ONCE_INIT;

static void thread_ends(void *depth) {
    pthread_mutex_lock(&standin_lock);
    if (*(int *)depth) standin_violation("a thread ended with a context current");
    pthread_mutex_unlock(&standin_lock);
    free(depth);
}

static void make_key(void) { pthread_key_create(&depth_key, thread_ends); }

static int *depth_here(void) {
    pthread_once(&depth_once, make_key);
    int *depth = pthread_getspecific(depth_key);
    if (depth == NULL) {
        depth = calloc(1, sizeof *depth);
        pthread_setspecific(depth_key, depth);
    }
    return depth;
}

#define CONTEXT ((CUcontext)(uintptr_t)0xC0)

void standin_violation(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    violations_count++;
    if (violations_used < sizeof violations)
        violations_used +=
            snprintf(violations + violations_used, sizeof violations - violations_used, "%s\n", text);
}

void standin_tally(const char *name) {
    for (int i = 0; i < MAX_COUNTERS; i++) {
        if (counters[i].name == NULL) counters[i].name = name;
        if (strcmp(counters[i].name, name) == 0) {
            counters[i].count++;
            return;
        }
    }
}

int standin_faulted(const char *function, CUresult *code) {
    for (int i = 0; i < MAX_FAULTS; i++) {
        if (faults[i].times == 0 || strcmp(faults[i].name, function) != 0) continue;
        if (faults[i].after > 0) {
            faults[i].after--;
            continue;
        }
        if (faults[i].times > 0) faults[i].times--;
        *code = faults[i].code;
        return 1;
    }
    return 0;
}

CUresult standin_enter(const char *function, int needs_context) {
    CUresult code = CUDA_SUCCESS;
    pthread_mutex_lock(&standin_lock);
    standin_tally(function);
    if (!initialised && strcmp(function, "cuInit") != 0) {
        standin_violation("%s before cuInit", function);
        code = CUDA_ERROR_NOT_INITIALIZED;
    } else if (needs_context && *depth_here() == 0) {
        standin_violation("%s without a current context", function);
        code = CUDA_ERROR_INVALID_CONTEXT;
    } else if (!standin_faulted(function, &code) && needs_context == WORKING_CONTEXT) {
        code = standin_broken;
    }
    if (code != CUDA_SUCCESS) pthread_mutex_unlock(&standin_lock);
    return code;
}

CUresult standin_leave(CUresult code) {
    pthread_mutex_unlock(&standin_lock);
    return code;
}

void *standin_handle(Object *object, Kind kind) {
    if (object_count == object_room) {
        object_room = object_room ? 2 * object_room : 64;
        objects = realloc(objects, object_room * sizeof *objects);
    }
    object->kind = kind;
    object->alive = 1;
    object->maker = pthread_self();
    objects[object_count] = object;
    return (void *)(uintptr_t)(FIRST_HANDLE + 16 * object_count++);
}

void *standin_object(const void *handle, Kind kind, const char *function) {
    static const char *names[] = {"", "stream", "event", "graph", "executable graph"};
    uintptr_t number = ((uintptr_t)handle - FIRST_HANDLE) / 16;
    if ((uintptr_t)handle < FIRST_HANDLE || number >= object_count || objects[number]->kind != kind) {
        standin_violation("%s: %p is no %s", function, handle, names[kind]);
        return NULL;
    }
    if (!objects[number]->alive) {
        standin_violation("%s: the %s was destroyed", function, names[kind]);
        return NULL;
    }
    return objects[number];
}

/* The driver: start, device, contexts */

CUresult cuInit(unsigned flags) {
    ENTER(NO_CONTEXT);
    initialised = 1;
    LEAVE(flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    ENTER(NO_CONTEXT);
    *count = 1;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(NO_CONTEXT);
    *device = ordinal;
    LEAVE(ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(NO_CONTEXT);
    snprintf(name, length, "Stand-in card");
    LEAVE(device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    ENTER(NO_CONTEXT);
    *major = 8;
    *minor = 6;
    LEAVE(device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(NO_CONTEXT);
    retained++;
    *context = CONTEXT;
    LEAVE(device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER(NO_CONTEXT);
    if (retained == 0) {
        standin_violation("the primary context was released more often than retained");
        LEAVE(CUDA_ERROR_INVALID_CONTEXT);
    }
    if (--retained == 0 && *depth_here()) standin_violation("the primary context ended while it was current");
    LEAVE(device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER(NO_CONTEXT);
    int *depth = depth_here();
    if (context != CONTEXT || retained == 0 || *depth == MAX_DEPTH) {
        standin_violation("a context was made current that is none, or too often");
        LEAVE(CUDA_ERROR_INVALID_CONTEXT);
    }
    ++*depth;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    ENTER(ANY_CONTEXT);
    --*depth_here();
    if (context != NULL) *context = CONTEXT;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER(NO_CONTEXT);
    *context = *depth_here() ? CONTEXT : NULL;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER(WORKING_CONTEXT);
    *device = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxSynchronize(void) {
    ENTER_UNCAPTURED();
    standin_run_all();
    LEAVE(standin_broken);
}

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
};

static CUresult describe(CUresult code, const char **text, int whole) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) {
            *text = whole ? errors[i].text : errors[i].name;
            return CUDA_SUCCESS;
        }
    *text = "an error the stand-in has no words for";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text) { return describe(code, text, 1); }

CUresult cuGetErrorName(CUresult code, const char **text) { return describe(code, text, 0); }

/* What the tests ask and order from outside */

void standin_fail(const char *function, int after, int times, int code) {
    pthread_mutex_lock(&standin_lock);
    for (int i = 0; i < MAX_FAULTS; i++)
        if (faults[i].times == 0) {
            snprintf(faults[i].name, sizeof faults[i].name, "%s", function);
            faults[i].after = after;
            faults[i].times = times;
            faults[i].code = (CUresult)code;
            break;
        }
    pthread_mutex_unlock(&standin_lock);
}

long standin_count(const char *name) {
    long found = 0;
    pthread_mutex_lock(&standin_lock);
    for (int i = 0; i < MAX_COUNTERS && counters[i].name != NULL; i++)
        if (strcmp(counters[i].name, name) == 0) found = counters[i].count;
    pthread_mutex_unlock(&standin_lock);
    return found;
}

int standin_live(int kind) {
    int live = 0;
    pthread_mutex_lock(&standin_lock);
    for (size_t i = 0; i < object_count; i++) live += objects[i]->alive && (int)objects[i]->kind == kind;
    pthread_mutex_unlock(&standin_lock);
    return live;
}

int standin_retained(void) { return retained; }

int standin_depth(void) { return *depth_here(); }

void standin_complain(const char *text) {
    pthread_mutex_lock(&standin_lock);
    standin_violation("%s", text);
    pthread_mutex_unlock(&standin_lock);
}

/* The violations so far, a line each. */
const char *standin_violations(void) { return violations; }

/* Forget violations, faults, counters and a broken context. Objects stay. */
void standin_forget(void) {
    pthread_mutex_lock(&standin_lock);
    memset(faults, 0, sizeof faults);
    memset(counters, 0, sizeof counters);
    violations[0] = '\0';
    violations_used = 0;
    violations_count = 0;
    standin_broken = CUDA_SUCCESS;
    pthread_mutex_unlock(&standin_lock);
}

/* Give up all there is, as the end of a process does: for when a kernel broke the context. */
void standin_wipe(void) {
    pthread_mutex_lock(&standin_lock);
    for (size_t i = 0; i < object_count; i++) objects[i]->alive = 0;
    standin_wipe_memory();
    pthread_mutex_unlock(&standin_lock);
}

int standin_missing(const char *function) {
    pthread_mutex_lock(&standin_lock);
    standin_violation("%s is not in the stand-in", function);
    pthread_mutex_unlock(&standin_lock);
    fprintf(stderr, "stand-in driver: %s is not implemented\n", function);
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* A process of its own leaves what it did wrong in the file that STANDIN_LOG names. */
__attribute__((destructor)) static void process_ends(void) {
    const char *path = getenv("STANDIN_LOG");
    if (path == NULL || !initialised) return;
    FILE *file = fopen(path, "w");
    if (file == NULL) return;
    for (size_t i = 0; i < object_count; i++)
        if (objects[i]->alive) fprintf(file, "object %zu of kind %d was never destroyed\n", i, objects[i]->kind);
    if (*depth_here()) fprintf(file, "the process ended with a context current\n");
    fputs(violations, file);
    fclose(file);
}
