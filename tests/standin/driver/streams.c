/* Streams and events. A stream is a queue that whoever waits for it works off. */
#include "standin.h"

#include <stdlib.h>
#include <string.h>

#define OP_MILLISECONDS 1.0

static Stream **streams;
static size_t stream_count;
static double clock_milliseconds;

void standin_append(Nodes *nodes, Op op) {
    if (nodes->count == nodes->room) {
        nodes->room = nodes->room ? 2 * nodes->room : 16;
        nodes->ops = realloc(nodes->ops, nodes->room * sizeof *nodes->ops);
    }
    nodes->ops[nodes->count++] = op;
}

Stream *standin_stream(CUstream handle, const char *function) {
    if ((uintptr_t)handle <= 2) {
        standin_violation("%s on the default stream, which all others wait for", function);
        return NULL;
    }
    return standin_object(handle, STREAM, function);
}

static void perform(const Op *op) {
    if (standin_broken != CUDA_SUCCESS) return; /* the device computes no more */
    clock_milliseconds += OP_MILLISECONDS;
    switch (op->kind) {
    case COPY_IN:
        if (standin_range_ok(op->target, op->nbytes, 0, "a copy to the device") &&
            standin_range_ok(op->source, op->nbytes, 1, "a copy to the device"))
            memcpy((void *)op->target, (void *)op->source, op->nbytes);
        break;
    case COPY_OUT:
        if (standin_range_ok(op->target, op->nbytes, 1, "a copy from the device") &&
            standin_range_ok(op->source, op->nbytes, 0, "a copy from the device"))
            memcpy((void *)op->target, (void *)op->source, op->nbytes);
        break;
    case RECORD:
        clock_milliseconds -= OP_MILLISECONDS;
        op->event->completed = op->generation;
        op->event->milliseconds = clock_milliseconds;
        break;
    case WAIT:
        clock_milliseconds -= OP_MILLISECONDS;
        standin_run_to(op->other, op->position);
        break;
    case HOST_FUNCTION: {
        CUresult code;
        standin_tally("kernel");
        if (standin_faulted("kernel", &code)) {
            standin_broken = code;
            break;
        }
        /* Without the lock: it runs Python, which may wait for a thread that wants the lock. */
        pthread_mutex_unlock(&standin_lock);
        op->function(op->data);
        pthread_mutex_lock(&standin_lock);
        break;
    }
    case LAUNCH_GRAPH:
        clock_milliseconds -= OP_MILLISECONDS;
        if (!op->nodes->alive) standin_violation("a graph was destroyed before it ran");
        for (size_t i = 0; i < op->nodes->count; i++) perform(&op->nodes->ops[i]);
        break;
    }
}

void standin_run_to(Stream *stream, uint64_t position) {
    while (stream->done < position) {
        if (stream->busy) {
            if (pthread_equal(stream->runner, pthread_self())) {
                standin_violation("a stream waits for itself");
                return;
            }
            pthread_cond_wait(&standin_moved, &standin_lock);
            continue;
        }
        stream->busy = 1;
        stream->runner = pthread_self();
        Op op = stream->queue.ops[stream->done - stream->first];
        perform(&op);
        stream->done++;
        stream->busy = 0;
        if (stream->done == stream->first + stream->queue.count) {
            stream->first = stream->done;
            stream->queue.count = 0;
        }
        pthread_cond_broadcast(&standin_moved);
    }
}

static uint64_t end_of(const Stream *stream) { return stream->first + stream->queue.count; }

void standin_run_all(void) {
    for (size_t i = 0; i < stream_count; i++)
        if (streams[i]->object.alive) standin_run_to(streams[i], end_of(streams[i]));
}

CUresult standin_enqueue(Stream *stream, Op op) {
    if (stream->captured != NULL) {
        if (stream->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        standin_append(stream->captured, op);
        return CUDA_SUCCESS;
    }
    standin_append(&stream->queue, op);
    return CUDA_SUCCESS;
}

static int uses(const Op *op, uintptr_t base, size_t nbytes) {
    if (op->kind != COPY_IN && op->kind != COPY_OUT) return 0;
    return (base <= op->target && op->target < base + nbytes) || (base <= op->source && op->source < base + nbytes);
}

int standin_pending(uintptr_t base, size_t nbytes) {
    for (size_t i = 0; i < stream_count; i++) {
        const Stream *stream = streams[i];
        for (uint64_t at = stream->done; at < end_of(stream); at++)
            if (uses(&stream->queue.ops[at - stream->first], base, nbytes)) return 1;
    }
    return 0;
}

int standin_capture_forbids(void) {
    int forbids = 0;
    for (size_t i = 0; i < stream_count; i++) {
        Stream *stream = streams[i];
        if (stream->captured == NULL || stream->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL || pthread_equal(stream->capturer, pthread_self()))
            forbids = stream->invalidated = 1;
    }
    return forbids;
}

CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = calloc(1, sizeof *stream);
    stream->flags = flags;
    if (!(flags & CU_STREAM_NON_BLOCKING)) standin_tally("stream that waits for the default one");
    streams = realloc(streams, (stream_count + 1) * sizeof *streams);
    streams[stream_count++] = stream;
    *handle = standin_handle(&stream->object, STREAM);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamDestroy(CUstream handle) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (stream->done < end_of(stream)) standin_violation("a stream was destroyed with work pending");
    if (stream->captured != NULL) standin_violation("a stream was destroyed while capturing");
    stream->object.alive = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTER_UNCAPTURED();
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    standin_tally("wait that spins");
    standin_run_to(stream, end_of(stream));
    LEAVE(standin_broken);
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    Event *event;
    OBJECT(event, event_handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    if (stream == NULL || flags != 0) LEAVE(CUDA_ERROR_INVALID_VALUE);
    if (event->stream == NULL) {
        standin_violation("a stream waits for an event that was never recorded");
        LEAVE(CUDA_SUCCESS);
    }
    Op op = {.kind = WAIT, .other = event->stream, .position = event->position};
    LEAVE(standin_enqueue(stream, op));
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(handle, __func__);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    Op op = {.kind = HOST_FUNCTION, .function = function, .data = data};
    LEAVE(standin_enqueue(stream, op));
}

CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    ENTER(WORKING_CONTEXT);
    Event *event = calloc(1, sizeof *event);
    event->flags = flags;
    *handle = standin_handle(&event->object, EVENT);
    LEAVE(CUDA_SUCCESS);
}

CUresult cuEventDestroy(CUevent handle) {
    ENTER(WORKING_CONTEXT);
    Event *event;
    OBJECT(event, handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    if (event->completed < event->generation && standin_broken == CUDA_SUCCESS)
        standin_violation("an event was destroyed before it came");
    event->object.alive = 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTER(WORKING_CONTEXT);
    Stream *stream = standin_stream(stream_handle, __func__);
    Event *event;
    OBJECT(event, handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    if (stream == NULL) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    event->generation++;
    event->stream = stream;
    event->position = end_of(stream) + 1;
    Op op = {.kind = RECORD, .event = event, .generation = event->generation};
    LEAVE(standin_enqueue(stream, op));
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTER_UNCAPTURED();
    Event *event;
    OBJECT(event, handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    if (!(event->flags & CU_EVENT_BLOCKING_SYNC)) standin_tally("wait that spins");
    if (event->stream != NULL) standin_run_to(event->stream, event->position);
    LEAVE(standin_broken);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    ENTER(WORKING_CONTEXT);
    Event *start, *end;
    OBJECT(start, start_handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    OBJECT(end, end_handle, EVENT, CUDA_ERROR_INVALID_HANDLE);
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (start->generation == 0 || end->generation == 0) LEAVE(CUDA_ERROR_INVALID_HANDLE);
    if (start->completed < start->generation || end->completed < end->generation) LEAVE(CUDA_ERROR_NOT_READY);
    *milliseconds = (float)(end->milliseconds - start->milliseconds);
    LEAVE(CUDA_SUCCESS);
}
