/* A stand-in for NVIDIA's driver library, in host memory: for tests on machines without a GPU.
 *
 * It is loaded as the real one is, by its name libcuda.so.1. Streams run nothing until somebody waits, so that a
 * dependency that is missing shows as a wrong image. It is stricter than hardware: whatever a driver may let pass, but
 * nobody should do, becomes a violation that is kept and told. What it lacks says so, and fails.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <cuda.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { STREAM = 1, EVENT, GRAPH, EXECUTABLE } Kind;

typedef enum { COPY_IN, COPY_OUT, RECORD, WAIT, HOST_FUNCTION, LAUNCH_GRAPH } OpKind;

typedef struct Stream Stream;
typedef struct Event Event;
typedef struct Nodes Nodes;

typedef struct {
    OpKind kind;
    uintptr_t target, source; /* of a copy */
    size_t nbytes;
    Event *event; /* recorded */
    uint64_t generation;
    Stream *other; /* whose position is waited for */
    uint64_t position;
    CUhostFn function;
    void *data;
    Nodes *nodes; /* a graph's, when it was launched */
} Op;

struct Nodes {
    Op *ops;
    size_t count, room;
    int alive; /* its executable was not destroyed */
};

/* Every object: a handle is made of its number, which no other object ever gets. */
typedef struct {
    Kind kind;
    int alive;
    pthread_t maker;
} Object;

struct Stream {
    Object object;
    unsigned flags;
    Nodes queue;
    uint64_t first, done; /* position of the queue's first entry, and of the next to run */
    int busy;
    pthread_t runner;
    Nodes *captured; /* NULL unless capturing */
    CUstreamCaptureMode mode;
    pthread_t capturer;
    int invalidated;
};

struct Event {
    Object object;
    unsigned flags;
    uint64_t generation, completed; /* how often it was recorded, and how far that came */
    Stream *stream;
    uint64_t position;
    double milliseconds;
};

typedef struct {
    Object object;
    Nodes *nodes;
} Graph;

/* core.c */
extern pthread_mutex_t standin_lock;
extern pthread_cond_t standin_moved;
extern CUresult standin_broken; /* what a failed kernel leaves behind: every later call answers it */
/* What a function asks for: no context, a current one, or one that no kernel has broken. */
enum { NO_CONTEXT, ANY_CONTEXT, WORKING_CONTEXT };
CUresult standin_enter(const char *function, int needs_context);
CUresult standin_leave(CUresult code);
void standin_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
void standin_tally(const char *name);
void *standin_handle(Object *object, Kind kind);
void *standin_object(const void *handle, Kind kind, const char *function);
int standin_faulted(const char *function, CUresult *code);

/* memory.c */
void standin_wipe_memory(void);
int standin_range_ok(uintptr_t address, size_t nbytes, int host, const char *what);

/* streams.c */
void standin_run_to(Stream *stream, uint64_t position);
void standin_run_all(void);
CUresult standin_enqueue(Stream *stream, Op op);
void standin_append(Nodes *nodes, Op op);
int standin_pending(uintptr_t base, size_t nbytes);
int standin_capture_forbids(void);
Stream *standin_stream(CUstream handle, const char *function);

/* Begin a driver function: count it, let a fault that was ordered happen, ask for the context. */
#define ENTER(needs_context)                                             \
    do {                                                                 \
        CUresult entered = standin_enter(__func__, needs_context);       \
        if (entered != CUDA_SUCCESS) return entered;                     \
    } while (0)
#define LEAVE(code) return standin_leave(code)
/* What no capture by this thread survives. */
#define ENTER_UNCAPTURED()                                               \
    ENTER(WORKING_CONTEXT);                                              \
    if (standin_capture_forbids()) LEAVE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
#define OBJECT(variable, handle, kind, code)                             \
    do {                                                                 \
        (variable) = standin_object((handle), (kind), __func__);         \
        if ((variable) == NULL) LEAVE(code);                             \
    } while (0)

#endif
